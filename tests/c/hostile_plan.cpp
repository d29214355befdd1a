// A plan cut at every byte and with every bit flipped is refused; with the checksum put right again
// it is refused or sound.

#include "hostile.h"

#include <vector>

#include "core/sha256.h"

namespace {

using Bytes = std::vector<uint8_t>;

Bytes read_file(const char* path) {
  Bytes data;
  std::FILE* file = std::fopen(path, "rb");
  expect(file != nullptr, "the plan cannot be opened");
  for (int c; (c = std::fgetc(file)) != EOF;) data.push_back(static_cast<uint8_t>(c));
  std::fclose(file);
  return data;
}

void sign(Bytes& data) {
  fs::Sha256 hash;
  hash.update(data.data(), 56);
  hash.update(data.data() + 88, data.size() - 88);
  const auto digest = hash.finish();
  std::memcpy(data.data() + 56, digest.data(), 32);
}

// What a careful host does with a plan, on one sample of five elements.
void use(fs_plan* plan) {
  fs_info info = sized<fs_info>();
  expect(fs_plan_info(plan, &info) == FS_OK, "info of a sound plan");
  fs_dims dims = sized<fs_dims>();
  dims.S = info.S, dims.G = info.G, dims.L = info.L, dims.K = info.K, dims.E = info.E;
  int64_t floats, ints;
  expect(fs_table_size(&dims, &floats, &ints) == FS_OK, "size of a sound plan");
  std::vector<double> table_f(static_cast<size_t>(info.rows * floats));
  std::vector<int32_t> table_i(static_cast<size_t>(info.rows * ints));
  expect(fs_plan_pack(plan, &dims, FS_F64, table_f.data(), info.rows * floats, table_i.data(),
                      info.rows * ints) == FS_OK,
         "pack of a sound plan");
  std::vector<double> x(5, 1), f(5, 1), slots(5 * static_cast<size_t>(info.S));
  fs_step_args args = sized<fs_step_args>();
  args.state_dtype = args.model_dtype = FS_F64;
  args.batch = args.pool = args.outputs = args.groups = args.copies = 1, args.elements = 5;
  args.S = info.S, args.G = info.G, args.L = info.L, args.K = info.K, args.E = info.E;
  args.table_rows = info.rows, args.table_f = table_f.data(), args.table_i = table_i.data();
  args.x = x.data(), args.slots = slots.data();
  for (int g = 0; g < info.G; ++g) args.f[g] = f.data();
  int32_t row, status = 0;
  args.row = &row, args.status = &status;
  for (row = 0; row < info.rows; ++row) {
    fs_row_info now = sized<fs_row_info>();
    expect(fs_plan_row(plan, row, &now) == FS_OK && fs_step(&args) == FS_OK,
           "a row of a sound plan");
  }
  expect((status & 0xFF & ~FS_NOT_FINITE) == 0, "a sound plan's indices");
}

int parse(const Bytes& data) {
  fs_plan* plan = nullptr;
  const Bytes copy(data);  // of exactly this size, so that a read behind the end is seen
  const int status = fs_plan_parse(copy.data(), copy.size(), &plan);
  expect((status == FS_OK) == (plan != nullptr),
         "a handle without success, or success without a handle");
  if (plan) {
    use(plan);
    expect(fs_plan_free(plan) == FS_OK, "free");
  }
  return status;
}

void spoil_file(const Bytes& good) {
  expect(parse(good) == FS_OK, "the plan itself");
  for (size_t size = 0; size < good.size(); ++size) {
    expect(
        parse(Bytes(good.begin(), good.begin() + static_cast<std::ptrdiff_t>(size))) == FS_E_FORMAT,
        "cut at byte " + std::to_string(size));
  }
  Bytes longer(good);
  longer.push_back(0);
  expect(parse(longer) == FS_E_FORMAT, "a tail");
  int sound = 0;
  for (size_t bit = 0; bit < good.size() * 8; ++bit) {
    Bytes bad(good);
    bad[bit / 8] ^= static_cast<uint8_t>(1 << bit % 8);
    expect(parse(bad) == FS_E_FORMAT, "bit " + std::to_string(bit) + " flipped");
    if (bit / 8 < 88 && bit / 8 >= 56) continue;
    sign(bad);
    const int status = parse(bad);
    expect(status == FS_OK || status == FS_E_FORMAT,
           "bit " + std::to_string(bit) + " flipped and signed");
    sound += status == FS_OK;
  }
  expect(sound > 0, "no coefficient could be changed: the checksum was not put right");
}

void spoil_plan_calls(const char* path) {
  fs_info info = sized<fs_info>();
  fs_row_info row = sized<fs_row_info>();
  fs_plan* plan = reinterpret_cast<fs_plan*>(&info);
  expect_refused(fs_plan_load(nullptr, &plan), "load without a path");
  expect(plan == nullptr, "a failed load left a handle");
  expect_refused(fs_plan_load("/nonexistent/x.fsplan", &plan), "load of no file");
  expect_refused(fs_plan_load("/", &plan), "load of a folder");
  expect_refused(fs_plan_load(path, nullptr), "load without a handle");
  expect_refused(fs_plan_parse(nullptr, 5, &plan), "parse of NULL");
  expect(fs_plan_parse(nullptr, 0, &plan) == FS_E_FORMAT, "parse of nothing");
  expect(fs_plan_load(path, &plan) == FS_OK, "load");
  expect(fs_plan_info(nullptr, &info) == FS_E_HANDLE, "info of NULL");
  expect(fs_plan_note(nullptr) == nullptr && fs_plan_note(plan) != nullptr, "note");
  uint64_t foreign[64] = {1, 2, 3};
  expect(fs_plan_info(reinterpret_cast<fs_plan*>(foreign), &info) == FS_E_HANDLE,
         "info of something else");
  expect(fs_plan_free(reinterpret_cast<fs_plan*>(foreign)) == FS_E_HANDLE,
         "free of something else");
  expect(fs_plan_free(nullptr) == FS_OK, "free of NULL");
  info.struct_size = 7;
  expect_refused(fs_plan_info(plan, &info), "info of another size");
  expect_refused(fs_plan_info(plan, nullptr), "info into NULL");
  for (const int64_t bad : {int64_t{-1}, int64_t{1} << 40, std::numeric_limits<int64_t>::min()})
    expect_refused(fs_plan_row(plan, bad, &row), "row");
  expect_refused(fs_plan_row(plan, 0, nullptr), "row into NULL");
  double scale;
  expect(fs_plan_init_scale(nullptr, &scale) == FS_E_HANDLE, "init_scale of NULL");
  expect_refused(fs_plan_init_scale(plan, nullptr), "init_scale into NULL");
  double numbers[8];
  int32_t words[8];
  fs_dims dims = sized<fs_dims>();
  expect_refused(fs_plan_pack(plan, nullptr, FS_F64, numbers, 8, words, 8),
                 "pack into little room");
  expect_refused(fs_plan_pack(plan, nullptr, FS_F16, numbers, 1 << 20, words, 1 << 20),
                 "pack as float16");
  expect_refused(fs_plan_pack(plan, nullptr, FS_F64, nullptr, 1 << 20, words, 1 << 20),
                 "pack into NULL");
  expect_refused(fs_plan_pack(plan, &dims, FS_F64, numbers, 1 << 20, words, 1 << 20),
                 "pack into smaller dims");
  dims.S = FS_MAX_SLOTS + 1;
  int64_t a, b;
  expect_refused(fs_table_size(&dims, &a, &b), "25 slots");
  dims.S = 0;
  expect_refused(fs_table_size(&dims, nullptr, &b), "size into NULL");
  expect(fs_plan_free(plan) == FS_OK, "free");
}

}  // namespace

void spoil_plans(const char* path) {
  spoil_file(read_file(path));
  spoil_plan_calls(path);
}
