#include "engine/places.h"

#include <algorithm>

namespace fastsample::inside {
namespace {

constexpr int32_t kRest = -1;      // row of a place that sits a launch out: outside the table
constexpr double kNothing = -0.0;  // a guidance scale that adds nothing, not even to a zero's sign

}  // namespace

Places::Places(const Options& options, const Sizes& sizes)
    : memory_(options.memory),
      sizes_(sizes),
      P_(sizes.P),
      D_(sizes.D),
      state_dtype_(options.state_dtype),
      model_dtype_(options.model_dtype),
      unit_(sizes.unit),
      sample_(sizes.sample),
      input_(sizes.input),
      apart_(sizes.apart),
      args_(step_args()) {
  inputs_ = piece(times(P_, input_));
  status_ = piece(times(P_, 4));
  if (options.preview) preview_ = piece(times(P_, sample_));
  if (apart_) host_sample_.resize(2 * sample_), host_status_.resize(static_cast<size_t>(P_));
  read_ = apart_ ? host_status_.data() : reinterpret_cast<const int32_t*>(status_.at());
  args_.device = memory_->device(), args_.gpu = memory_->gpu(), args_.stream = memory_->stream();
  args_.state_dtype = state_dtype_, args_.model_dtype = model_dtype_;
  args_.threads = options.threads;
  args_.batch = args_.pool = P_, args_.elements = D_;
}

// ---- Memory -------------------------------------------------------------------------------------

void Places::fit(const Table& table, bool masked) {
  const fs_dims& dims = table.dims();
  const size_t floats = (table.float_bytes() + 63) / 64 * 64, bytes = floats + table.int_bytes();
  if (apart_) {  // the table that launches go by stays as it is until nothing can throw any more
    if (next_table_.bytes() < bytes) next_table_ = piece(bytes);
    memory_->copy(next_table_.at(), table.floats(), table.float_bytes());
    memory_->copy(next_table_.at(floats), table.ints(), table.int_bytes());
    memory_->wait();
  }
  Piece mask, known;
  if (masked && !mask_.at()) mask = piece(times(P_, sample_)), known = piece(times(P_, sample_));
  if (!host_ || args_.S != dims.S || args_.G != dims.G || args_.K != dims.K || args_.E != dims.E)
    grow(dims);
  if (mask.at()) mask_ = std::move(mask), known_ = std::move(known);
  args_.mask = mask_.at(), args_.mask_batch_stride = D_;
  args_.known = known_.at(), args_.known_batch_stride = D_;
  table.put_into(args_);
  if (!apart_) return;
  std::swap(table_, next_table_);
  args_.table_f = table_.at();
  args_.table_i = reinterpret_cast<const int32_t*>(table_.at(floats));
}

Shape Places::shape() const {
  Shape own;
  own.dims.S = args_.S, own.dims.G = args_.G, own.dims.L = args_.L;
  own.dims.K = args_.K, own.dims.E = args_.E;
  own.some = host_ != nullptr, own.masked = mask_.at() != nullptr;
  return own;
}

// Everything that the dims decide, anew; the samples stay what they are.
void Places::grow(const fs_dims& dims) {
  Piece state = piece(sizes_.state(dims));
  Piece batch = piece(sizes_.batch(dims)), outputs = piece(sizes_.batch(dims));
  const Words at = sizes_.words(dims);
  Piece words = piece(at.bytes), ones;
  std::vector<std::byte> host(apart_ ? at.bytes : 0);
  if (apart_) {
    const std::vector<double> one(sizes_.ones(dims) / sizeof(double), 1.0);
    ones = piece(sizes_.ones(dims));
    memory_->copy(ones.at(), one.data(), sizes_.ones(dims));
  }
  if (state_.at()) memory_->copy(state.at(), state_.at(), std::min(state.bytes(), state_.bytes()));
  memory_->wait();
  state_ = std::move(state), batch_ = std::move(batch), outputs_ = std::move(outputs);
  words_ = std::move(words), ones_ = std::move(ones), host_words_ = std::move(host);
  at_ = at;
  host_ = apart_ ? host_words_.data() : words_.at();
  bind();
}

void Places::bind() {
  const auto there = [this](size_t at) { return words_.at(at); };
  args_.x = state_.at(), args_.slots = state_.at(sizes_.step);
  args_.slot_stride = static_cast<int64_t>(sizes_.step / unit_);
  args_.model_input = inputs_.at(), args_.preview = preview_.at();
  args_.status = reinterpret_cast<int32_t*>(status_.at());
  args_.row = reinterpret_cast<const int32_t*>(there(at_.row));
  args_.f_index = reinterpret_cast<const int32_t*>(there(at_.f_index));
  args_.seed = reinterpret_cast<const uint64_t*>(there(at_.seed));
  args_.stage = reinterpret_cast<const uint32_t*>(there(at_.stage));
  args_.scale = there(at_.scale);
  for (const void*& f : args_.f) f = outputs_.at();
}

// ---- A tick -------------------------------------------------------------------------------------

void Places::clear() {
  std::fill_n(word<int32_t>(at_.row), P_, kRest);
  std::fill_n(word<int32_t>(at_.f_index), args_.G * P_, -1);
  shown_ = 0, in_order_ = true;
}

void Places::put_number(size_t at, int64_t k, double value) {
  if (state_dtype_ == FS_F64) word<double>(at)[k] = value;
  else word<float>(at)[k] = static_cast<float>(value);
}

void Places::put(const Seat& seat) {
  const int64_t k = seat.place;
  word<int32_t>(at_.row)[k] = static_cast<int32_t>(seat.table_row + seat.row.load());
  word<uint64_t>(at_.seed)[k] = seat.request.seed;
  word<uint32_t>(at_.stage)[k] = seat.request.stage;
  const std::vector<double>& scales = seat.request.guidance;
  for (int32_t s = 0; s < args_.K; ++s) {
    const auto own = static_cast<size_t>(s);
    put_number(at_.scale, k * args_.K + s, own < scales.size() ? scales[own] : kNothing);
  }
}

void Places::show(const Seat& seat, int branch) {
  const fs_row_info& before = seat.plan.rows()[static_cast<size_t>(seat.row.load() - 1)];
  int32_t* const index = word<int32_t>(at_.index);
  word<int32_t>(at_.f_index)[branch * P_ + seat.place] = static_cast<int32_t>(shown_);
  index[shown_] = static_cast<int32_t>(seat.place);
  in_order_ = in_order_ && index[shown_] == index[0] + shown_;
  for (int32_t e = 0; e < args_.E; ++e) put_number(at_.t, shown_ * args_.E + e, before.t[e]);
  ++shown_;
}

void Places::repeat() {
  int32_t* const index = word<int32_t>(at_.index);
  const size_t wide = times(args_.E, unit_);
  std::byte* const t = host_ + at_.t + times(shown_, wide);
  index[shown_] = index[shown_ - 1];
  if (wide) std::memcpy(t, t - wide, wide);
  in_order_ = false, ++shown_;
}

void Places::upload() {
  if (apart_) memory_->copy(words_.at(), host_, at_.bytes);
}

void Places::begin(const Seat& seat) {
  static const int32_t sound = 0;
  const int64_t k = seat.place;
  memory_->copy(status_.at(times(k, 4)), &sound, sizeof sound);
  if (seat.masked) {
    memory_->copy(mask_.at(times(k, sample_)), seat.mask.data(), sample_);
    memory_->copy(known_.at(times(k, sample_)), seat.known.data(), sample_);
  }
  if (seat.request.noise || seat.request.latent) {
    memory_->copy(x(k), seat.sample.data(), sample_);
    if (seat.request.start > 0) enter(seat);
    return;
  }
  fs_noise_args noise = sized<fs_noise_args>();
  noise.device = args_.device, noise.gpu = args_.gpu, noise.stream = args_.stream;
  noise.dtype = state_dtype_, noise.threads = args_.threads;
  noise.batch = 1, noise.elements = D_, noise.out = x(k);
  noise.seed = args_.seed + k, noise.stage = args_.stage + k;
  check(fs_noise_fill(&noise));
}

// The model input of a state at row `start`: the plan's last row, which holds x, with the input
// scale of the row before it.
void Places::enter(const Seat& seat) {
  const fs_info& info = seat.plan.info();
  const fs_dims dims = seat.plan.dims();
  int64_t floats = 0, ints = 0;
  check(fs_table_size(&dims, &floats, &ints));
  entry_floats_.resize(times(info.rows * floats, unit_));
  entry_ints_.resize(static_cast<size_t>(info.rows * ints));
  check(fs_plan_pack(seat.plan.get(), &dims, state_dtype_, entry_floats_.data(), info.rows * floats,
                     entry_ints_.data(), info.rows * ints));
  std::byte* const last = entry_floats_.data() + times((info.rows - 1) * floats, unit_);
  const double c = seat.plan.rows()[static_cast<size_t>(seat.request.start - 1)].c;
  const auto narrow = static_cast<float>(c);
  std::byte* const at = last + times(floats - 5 - info.E, unit_);
  if (state_dtype_ == FS_F64) std::memcpy(at, &c, sizeof c);
  else std::memcpy(at, &narrow, sizeof narrow);

  const size_t row = (times(floats, unit_) + 63) / 64 * 64;
  if (!entry_.at()) entry_ = piece(kEntry);
  memory_->copy(entry_.at(), last, times(floats, unit_));
  memory_->copy(entry_.at(row), entry_ints_.data() + (info.rows - 1) * ints, times(ints, 4));
  fs_step_args args = step_args();
  args.device = args_.device, args.gpu = args_.gpu, args.stream = args_.stream;
  args.state_dtype = state_dtype_, args.model_dtype = model_dtype_, args.threads = args_.threads;
  args.S = dims.S, args.G = dims.G, args.L = dims.L, args.K = dims.K, args.E = dims.E;
  args.table_rows = 1, args.table_f = entry_.at();
  args.table_i = reinterpret_cast<const int32_t*>(entry_.at(row));
  args.batch = args.pool = 1, args.elements = D_, args.one_row = 1;
  args.x = x(seat.place), args.slots = args_.slots, args.slot_stride = args_.slot_stride;
  args.model_input = inputs_.at(times(seat.place, input_));
  check(fs_step(&args));
}

void Places::gather() {
  if (shown_ == 0 || in_order_) return;
  if (!apart_) {
    for (int64_t j = 0; j < shown_; ++j) {
      const int32_t place = word<int32_t>(at_.index)[j];
      std::memcpy(batch_.at(times(j, input_)), inputs_.at(times(place, input_)), input_);
    }
    return;
  }
  fs_cost_args args = sized<fs_cost_args>();
  args.device = args_.device, args.gpu = args_.gpu, args.stream = args_.stream;
  args.dtype = model_dtype_, args.threads = args_.threads;
  args.terms = 1, args.batch = 1, args.I = P_, args.J = shown_, args.D = D_;
  args.U[0] = inputs_.at(), args.c = reinterpret_cast<const double*>(ones_.at()), args.p = 2;
  args.i_star = reinterpret_cast<const int32_t*>(words_.at(at_.index)), args.out = batch_.at();
  check(fs_cost_gather(&args));
}

Batch Places::batch(int64_t first, int64_t rows) const {
  Batch made{};
  made.rows = rows, made.elements = D_, made.scalars = args_.E;
  const int64_t place = word<int32_t>(at_.index)[0] + first;
  made.x = in_order_ ? inputs_.at(times(place, input_)) : batch_.at(times(first, input_));
  const size_t t = at_.t + times(first * args_.E, unit_);
  made.t = words_.at(t), made.t_host = host_ + t;
  made.out = outputs_.at(times(first, input_));
  made.stream = args_.stream;
  return made;
}

void Places::launch() {
  args_.outputs = shown_;
  check(fs_step(&args_));
}

void Places::look() {
  if (!apart_) return;
  memory_->copy(host_status_.data(), status_.at(), host_status_.size() * sizeof(int32_t));
  memory_->wait();
}

const void* Places::state(const Seat& seat) { return on_host(x(seat.place), 0); }

const void* Places::preview(const Seat& seat) {
  return preview_.at() ? on_host(preview_.at(times(seat.place, sample_)), 1) : nullptr;
}

const void* Places::on_host(std::byte* from, size_t copy) {
  if (!apart_) return from;
  std::byte* const to = host_sample_.data() + copy * sample_;
  memory_->copy(to, from, sample_);
  memory_->wait();
  return to;
}

}  // namespace fastsample::inside
