// The same bits alone and in any company, from noise, states and images, on any memory; and what a
// tick costs: one upload, one launch, no allocation.

#include "engine_apart.h"

namespace {

void in_any_order(const Mix& mix) {
  for (unsigned order = 0; order < 200; ++order) {
    fsp::Engine engine({denoise, denoise}, options(5 + order % 60));
    mix.come(engine, order);
  }
}

void padded(const Mix& mix) {
  const auto whole = [](const fsp::Batch& batch) {
    DEMAND(batch.rows == 8);
    denoise(batch);
  };
  fsp::Options own = options(16);
  own.pad_to = 8;
  fsp::Engine engine({whole, whole}, own);
  mix.come(engine, 1);
  const fsp::Counts counts = engine.counts();
  DEMAND(counts.rows == 8 * counts.calls && counts.calls <= 2 * counts.ticks);
}

void on_memory_apart(const Mix& mix) {
  const auto memory = std::make_shared<Apart>();
  {
    fsp::Options own = options(20);
    own.memory = memory, own.preview = true;
    fsp::Engine engine({denoise, denoise}, own);
    mix.come(engine, 2);
    const fsp::Ticket one = engine.submit(mix.requests[0]);
    engine.tick();
    const int64_t copies = memory->copies, waits = memory->waits;
    while (one.left() > 1) engine.tick();
    DEMAND(memory->copies - copies == one.row() - 1 &&
           memory->waits == waits);  // one upload a tick
    engine.tick();
    DEMAND(one.done() && memory->waits == waits + 1);
  }
  DEMAND(memory->taken == 0);
}

// A plan that finds no memory for its history is refused, and nobody else notices.
void without_memory(const Plans& plans) {
  const auto memory = std::make_shared<Apart>();
  fsp::Options own = options(4);
  own.memory = memory;
  fsp::Engine engine({denoise, denoise}, own);
  const fsp::Ticket one = engine.submit(request(plans.at("dpmpp_2m_sde"), 1));
  engine.tick();
  memory->left = 0;
  const fsp::Ticket other = engine.submit(request(plans.at("unipc"), 2));
  engine.tick();
  DEMAND(other.state() == fsp::State::refused && other.reason());
  DEMAND(thrown<std::bad_alloc>([&] { other.result<float>(); }) != "");
  memory->left = 1 << 30;
  const fsp::Ticket again = engine.submit(request(plans.at("unipc"), 2));
  engine.run();
  DEMAND(result(one) == alone(request(plans.at("dpmpp_2m_sde"), 1)));
  DEMAND(result(again) == alone(request(plans.at("unipc"), 2)));
}

// Plans come and go, each with sixty rows: those that nobody runs give way to others.
void plans_that_go(const Plans& plans) {
  const auto memory = std::make_shared<Apart>();
  fsp::Options own = options(4);
  own.memory = memory;
  fsp::Engine engine(denoise, own);
  int64_t rows = 0, takes = 0, seen = 0;
  for (const auto& [name, plan] : plans) {
    if (name.rfind("long", 0) != 0) continue;
    const fsp::Ticket ticket = engine.submit(request(plan, 1));
    engine.run();
    DEMAND(result(ticket) == alone(request(plan, 1)));
    rows += plan.info().rows;
    if (++seen == 2) takes = memory->takes;  // two tables, one written while the other is read
  }
  DEMAND(rows > 1024 && memory->takes == takes);
}

void nothing_allocated(const Mix& mix) {
  fsp::Options own = options(32, 64);
  own.policy = fsp::policy::shortest;
  int64_t called = 0;
  fsp::Engine engine({denoise, denoise}, own);
  for (int round = 0; round < 3; ++round) {
    std::vector<fsp::Ticket> tickets;
    for (const fsp::Request& each : mix.requests) {
      tickets.push_back(engine.submit(each));
      if (tickets.size() % 3 == 0) engine.tick();
    }
    fsp::Request told = mix.requests[0];
    told.callback = [&called](const fsp::Progress&) { ++called; };
    tickets.push_back(engine.submit(told));
    const int64_t before = allocations;
    while (engine.tick()) continue;
    if (round == 2) DEMAND(allocations == before);
  }
  DEMAND(called > 10);
}

// What a request begins with: noise of its seed or given, the state after row 0, an image.
void beginnings(const Plans& plans) {
  const fsp::Plan &plan = plans.at("dpmpp_2m"), &image = plans.at("image");
  const Floats want = alone(request(plan, 7));
  Floats noise(D), state(D);
  const uint64_t seed = 7;
  fs_noise_args args = fsp::sized<fs_noise_args>();
  args.batch = 1, args.elements = D, args.seed = &seed, args.out = noise.data();
  fsp::check(fs_noise_fill(&args));
  const auto scale = static_cast<float>(plan.init_scale());
  for (size_t e = 0; e < noise.size(); ++e) state[e] = scale * noise[e];
  fsp::Request given = request(plan, 7), entered = request(plan, 7), shown = request(image, 7);
  given.noise = noise.data(), shown.latent = noise.data();
  entered.latent = state.data(), entered.start = 1;
  DEMAND(alone(given) == want && alone(entered) == want);
  const uint32_t stage = 3;
  args.stage = &stage;
  Floats other(D);
  args.out = other.data();
  fsp::check(fs_noise_fill(&args));
  fsp::Request staged = request(plan, 7), handed = request(plan, 7);
  staged.stage = stage, handed.noise = other.data();
  DEMAND(alone(staged) == alone(handed) && alone(staged) != want);
  fsp::Request later = request(plans.at("dpmpp_2m_sde"), 7);
  later.noise = noise.data();
  const Floats usual = alone(later);
  later.stage = stage;
  DEMAND(alone(later) != usual);  // the noise of its rows is another
  const Floats drawn = alone(shown);
  DEMAND(alone(shown) == drawn && drawn != want);
  shown.seed = 8, given.seed = 8;
  DEMAND(alone(shown) != drawn && alone(given) == want);  // what is not given is drawn
}

// A plan with its known image, or without, row by row through the C interface.
Floats by_hand(const fsp::Plan& plan, uint64_t seed, const float* mask, const float* known) {
  fsp::Table table;
  table.add(plan);
  Floats x(D), slots(static_cast<size_t>(plan.info().S * D) + 1), input(D), out(D);
  fs_noise_args noise = fsp::sized<fs_noise_args>();
  noise.batch = 1, noise.elements = D, noise.seed = &seed, noise.out = x.data();
  fsp::check(fs_noise_fill(&noise));
  fs_step_args args = fsp::step_args();
  table.put_into(args);
  args.batch = args.pool = args.outputs = 1, args.elements = D, args.one_row = 1;
  args.x = x.data(), args.slots = slots.data(), args.model_input = input.data();
  args.f[0] = out.data(), args.seed = &seed;
  args.mask = mask, args.mask_batch_stride = D, args.known = known, args.known_batch_stride = D;
  for (int64_t i = 0; i < plan.info().rows - 1; ++i) {
    if (plan.asks(i)) {
      const auto shift = 0.001f * static_cast<float>(plan.rows()[static_cast<size_t>(i - 1)].t[0]);
      for (size_t e = 0; e < D; ++e) out[e] = (0.5f * input[e] - 0.1f) + shift;
    }
    args.row_number = static_cast<int32_t>(i);
    fsp::check(fs_step(&args));
  }
  return x;
}

// Some with a mask, some of the same plan without, one after the other and together.
void masked(const Plans& plans) {
  const fsp::Plan& plan = plans.at("inpaint");
  const Floats &mask = picture(3).first, &known = picture(3).second;
  fsp::Request with(plan), without(plan);
  with.seed = without.seed = 5;
  with.mask = mask.data(), with.known = known.data();
  const Floats blended = by_hand(plan, 5, mask.data(), known.data());
  const Floats plain = by_hand(plan, 5, nullptr, nullptr);
  DEMAND(alone(with) == blended && alone(without) == plain && blended != plain);
  fsp::Engine engine(denoise, options(2));
  const fsp::Ticket first = engine.submit(without);
  engine.tick(), engine.tick();
  const fsp::Ticket second = engine.submit(with);  // while the first runs: memory for masks
  while (!first.done()) engine.tick();
  const fsp::Ticket third = engine.submit(without);
  engine.run();
  DEMAND(result(first) == plain && result(second) == blended && result(third) == plain);
}

// A state in float64, and a model that is asked and answers in bfloat16.
void dtypes(const Plans& plans) {
  const auto rough = [](const fsp::Batch& batch) {  // out = x / 2
    const auto* x = static_cast<const uint16_t*>(batch.x);
    auto* out = static_cast<uint16_t*>(batch.out);
    for (int64_t e = 0; e < batch.rows * D; ++e)
      out[e] = static_cast<uint16_t>((x[e] & 0x7F80) > 0x80 ? x[e] - 0x80 : 0);
  };
  fsp::Options own = options(3);
  own.state_dtype = FS_F64, own.model_dtype = FS_BF16;
  fsp::Engine engine(rough, own);
  Floats state(D, 1.0f);
  std::vector<double> wide(D, 1.0);
  fsp::Request entered(plans.at("dpmpp_2m"));
  entered.latent = wide.data(), entered.start = 1;
  const fsp::Ticket tickets[] = {engine.submit(request(plans.at("unipc"), 3)),
                                 engine.submit(entered), engine.submit(entered)};
  engine.run();
  const double* x = tickets[1].result<double>();
  DEMAND(std::memcmp(x, tickets[2].result<double>(), D * sizeof(double)) == 0 && x[0] == x[D - 1]);
  const auto exact = [](const fsp::Batch& batch) {
    const auto* in = static_cast<const float*>(batch.x);
    for (int64_t e = 0; e < batch.rows * D; ++e) static_cast<float*>(batch.out)[e] = 0.5f * in[e];
  };
  entered.latent = state.data();
  const Floats near = alone(entered, options(1), {exact});
  DEMAND(std::fabs(near[0] - x[0]) < 0.02 * std::fabs(x[0]) && near[0] != static_cast<float>(x[0]));
  DEMAND(says(thrown<std::logic_error>([&] { tickets[0].result<float>(); }), "of 4 bytes"));
}

}  // namespace

void try_bits(const Plans& plans) {
  Plans mixed = plans;
  for (auto each = mixed.begin(); each != mixed.end();) {
    const std::string& name = each->first;
    const bool apart = name == "image" || name == "large" || name == "two_times";
    each = apart || name == "again" || name.rfind("long", 0) == 0 ? mixed.erase(each) : ++each;
  }
  const Mix mix(mixed);
  in_any_order(mix);
  padded(mix);
  on_memory_apart(mix);
  nothing_allocated(mix);
}

void try_memory(const Plans& plans) {
  plans_that_go(plans);
  without_memory(plans);
  masked(plans);
  beginnings(plans);
  dtypes(plans);
}
