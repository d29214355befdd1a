// fastsample: many requests in one batch, each with its own plan, row, seed, guidance and
// conditions, for servers in C++17 without Python. Link fastsample_engine (CMake:
// fastsample::engine or fastsample::engine_static; pkg-config: fastsample-engine).
//
//     fastsample::Options options;
//     options.elements = 4 * 64 * 64;
//     fastsample::Engine engine(network, options);  // void network(const fastsample::Batch&)
//     engine.serve();                               // or tick() after tick(), or run()
//     fastsample::Request request(plan);
//     request.seed = 7;
//     fastsample::Ticket ticket = engine.submit(std::move(request));
//     const float* x0 = ticket.wait().result<float>();  // [elements]
//
// A tick takes every request in flight one row further: each model is asked once, for a row of its
// batch for each branch of each request whose row asks it, and one fs_step follows. A request ends
// with the same bits whoever else is in flight and in whatever order they came, as far as the
// model's rows do: those of an elementwise model do; a network's depend on the batch size, by which
// its libraries choose their kernels, so that pad_to makes them the same in any company. The Engine
// of the Python package gives the same bits. A tick allocates nothing once requests of its kinds
// have been served; a request does when it is submitted, and a plan of a new layout between ticks.
//
// What the Python Engine takes and this one does not: requests of several tracks, ladders
// (after=), select, and collate, for which a model is handed each row's condition as it is. An
// image that a run begins from at a share of the steps or at a noise level is the latent of a plan
// of its own, `plan.remake(strength=...)` or `plan.remake(level=...)` in Python, saved.
#ifndef FASTSAMPLE_ENGINE_HPP
#define FASTSAMPLE_ENGINE_HPP

#include <fastsample/fastsample.hpp>
#include <fastsample/memory.hpp>

#include <chrono>
#include <cstdint>
#include <exception>
#include <functional>
#include <limits>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

namespace fastsample {

namespace inside {
struct Seat;
class Core;
}  // namespace inside

// ---- What goes wrong ----------------------------------------------------------------------------
// A request that no Engine like this could run is refused by submit() with Error, FS_E_ARG.

// Thrown by submit(): there is no room for a request now. More than Options::waiting would wait: of
// the waiting, in order of arrival, the first that finds no room beside the running and those
// before it, and all after it.
class FS_API EngineFull : public std::runtime_error {
 public:
  EngineFull(const std::string& sentence, double seconds)
      : std::runtime_error(sentence), retry_after(seconds) {}
  double retry_after;  // seconds until there may be room, by the mean of the last 64 ticks
};

// Why a request failed: its deadline has passed, or cannot be met.
class FS_API DeadlineExceeded : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

// Why a request failed: its state holds an infinity or a NaN since this row of its plan.
class FS_API NotFinite : public std::runtime_error {
 public:
  NotFinite(const std::string& sentence, int64_t at) : std::runtime_error(sentence), row(at) {}
  int64_t row;
};

// ---- Requests -----------------------------------------------------------------------------------

// A ticket is waiting from submit() on and running once it has a place; the first of the other
// four that happens is final.
enum class State {
  waiting,
  running,
  result,     // its last row has run
  cancelled,  // by cancel(), close(false) or the Engine's end
  refused,    // it never ran: what it needs could not be had when its turn came
  failed      // by the error that is its reason: the model's own, NotFinite, DeadlineExceeded, what
              // its callback threw, or the library's own
};

// A request in an Engine, for the one who made it; copies are the same request. It may outlive the
// Engine. Any thread may use it.
class FS_API Ticket {
 public:
  State state() const noexcept;
  bool done() const noexcept;                          // neither waiting nor running
  const Ticket& wait() const;                          // until it is done; somebody else must tick
  bool wait_for(std::chrono::nanoseconds time) const;  // done()

  // The sample [elements], of the state's dtype, as long as a copy of the ticket is there. Throws
  // the reason where there is none, std::runtime_error where it was cancelled, and std::logic_error
  // before it is done and for another T.
  template <class T>
  const T* result() const {
    return static_cast<const T*>(sample(sizeof(T)));
  }

  // Why it was refused or failed; nullptr otherwise.
  std::exception_ptr reason() const;

  // Ends it, unless it is done. A row that runs goes on without effect.
  void cancel() const;

  // For policies and progress.
  uint64_t number() const noexcept;  // in order of arrival
  const Plan& plan() const noexcept;
  int64_t row() const noexcept;        // the one that the next tick runs
  int64_t left() const noexcept;       // rows left
  int64_t model() const noexcept;      // the one asked by the next row that asks; -1: none
  double deadline() const noexcept;    // seconds of the steady clock; infinity: none
  int64_t overtaken() const noexcept;  // how often a request that came later entered earlier

 private:
  friend struct inside::Seat;
  std::shared_ptr<inside::Seat> seat_;
  explicit Ticket(std::shared_ptr<inside::Seat> seat) : seat_(std::move(seat)) {}
  const void* sample(size_t unit) const;
};

// What a request's callback is told, valid while it runs.
struct Progress {
  const Ticket& ticket;
  int64_t row;     // the one that has just run
  const void* x;   // the state [elements], on the host
  const void* x0;  // that row's prediction of the data [elements], on the host; nullptr without
                   // Options::preview, and before a row has asked a model
};

struct Request {
  explicit Request(Plan what) : plan(std::move(what)) {}

  Plan plan;
  uint64_t seed = 0;
  uint32_t stage = 0;            // of the noise, see fs_step_args
  std::vector<double> guidance;  // the plan's K scales

  // On the host, copied by submit(); of the state's dtype, [elements]. Neither: noise of the seed.
  const void* noise = nullptr;   // unit normal, for row 0
  const void* latent = nullptr;  // a state, for row `start`, one of the plan's entries; for a plan
  int64_t start = 0;             // that begins from an image the image, for row 0

  // Inpainting, by a plan whose rows blend a known image: where mask is 1 the sample follows
  // `known`, where it is 0 the model; between them both. Likewise copied, [elements]; both, or
  // none.
  const void* mask = nullptr;
  const void* known = nullptr;

  // What the model is told beside x and t: of each of the plan's G branches whatever the model
  // understands, or nothing at all. The Engine keeps it until the request is done.
  std::vector<std::shared_ptr<const void>> conditions;

  // Seconds from submit(). Looked at between two ticks: a request fails with DeadlineExceeded where
  // it has passed, or cannot be met: now + n t is later, for its n rows left that ask a model, and
  // t the least time of the last 64 ticks that asked one (0 before the first).
  double deadline = std::numeric_limits<double>::infinity();

  // Called after every `every`-th row, but not after the last, in the thread that ticks. What it
  // throws ends the request. It may submit and cancel.
  std::function<void(const Progress&)> callback;
  int64_t every = 1;
};

// ---- The model ----------------------------------------------------------------------------------

// A row of a model's batch: of which request and branch.
struct Asked {
  uint64_t request;  // Ticket::number()
  int32_t branch;
  const void* condition;  // Request::conditions[branch], nullptr without any
};

// What a model is asked; it writes `out`. What it throws ends the requests in this batch, and none
// other. Arrays are in the Engine's memory, and work on them belongs on `stream`; they hold until
// it returns.
struct Batch {
  int64_t model;       // its number
  int64_t rows;        // N; with pad_to always that, the last one repeated
  int64_t elements;    // D
  int64_t scalars;     // E
  const void* x;       // [N, D] of the model's dtype
  const void* t;       // [N, E] of the state's dtype
  const void* t_host;  // the same, on the host
  const Asked* asked;  // [N], on the host
  bool changed;        // asked is not what this model's last batch had
  void* out;           // [N, D] of the model's dtype
  void* stream;
};

using Model = std::function<void(const Batch&)>;

// ---- Who enters next ----------------------------------------------------------------------------

// Writes the waiting into `entering` in the order in which they are to enter, leaving out those
// that are to wait; waiting and running are in order of arrival. Asked once at the beginning of a
// tick, where a place is free. They enter from the head as long as the head has room: nothing
// passes a head that has none. A request that came later and enters earlier overtakes; one
// overtaken Options::overtakes times goes before all others, first come first. Where nobody runs
// and the policy names nobody, the one that came first enters.
using Policy =
    std::function<void(const std::vector<Ticket>& waiting, const std::vector<Ticket>& running,
                       std::vector<Ticket>& entering)>;

namespace policy {
// In order of arrival.
FS_API void first(const std::vector<Ticket>&, const std::vector<Ticket>&, std::vector<Ticket>&);
// Fewest rows left first, of those alike the one that came first.
FS_API void shortest(const std::vector<Ticket>&, const std::vector<Ticket>&, std::vector<Ticket>&);
// Those alone whose next model is the one that most of the running ask next (of two alike the lower
// number; nobody running: the one of the first to come): for plans that swap models.
FS_API void grouped(const std::vector<Ticket>&, const std::vector<Ticket>&, std::vector<Ticket>&);
}  // namespace policy

// ---- The Engine ---------------------------------------------------------------------------------

struct Options {
  int64_t elements = 0;  // D numbers a sample, 1 or more
  // Requests in flight at most. On a device of its own memory an Engine keeps 8 bytes for each pair
  // of a request and a row of the models' batch.
  int64_t capacity = 64;
  int64_t waiting = -1;  // further requests that wait at most, -1: as many; another is refused
  int64_t pad_to = 0;    // a model's batch has always this many rows; requests in flight have no
                         // more branches in all. 0: as many rows as are asked for
  int32_t state_dtype = FS_F32;  // FS_F32 or FS_F64
  int32_t model_dtype = FS_F32;  // any
  bool preview = false;          // form Progress::x0
  int32_t threads = 0;           // as in fs_step_args
  Policy policy = fastsample::policy::first;
  int64_t overtakes = 64;
  // Bytes that are never passed, 0: no end: of places for `capacity` requests with their masks, the
  // models' batch and outputs, the table of plans and the copies that it is made anew in, what the
  // places were before while samples move to larger ones, and of each request that is in its
  // sample, mask and known image. Conditions and results are their owners'. A request that would
  // pass it is refused by submit() before anything is taken: Error, by itself; EngineFull, beside
  // those that are in.
  int64_t max_bytes = 0;
  std::shared_ptr<Memory> memory;  // by default the host's; cuda_memory.hpp has a GPU's
};

// Counts since the Engine was made.
struct Counts {
  int64_t ticks, launches;                     // of fs_step, one a tick
  int64_t calls, rows;                         // of models, and the rows in their batches
  int64_t refused_at_submit;                   // EngineFull
  int64_t result, cancelled, refused, failed;  // requests that have ended and left
  int64_t waiting, running;                    // now
};

class FS_API Engine {
 public:
  // models: those that the plans' rows name, number 0 first. Throws Error and std::bad_alloc.
  Engine(std::vector<Model> models, Options options);
  Engine(Model model, Options options);
  Engine(const Engine&) = delete;
  Engine& operator=(const Engine&) = delete;
  ~Engine();  // close(false)

  // Takes in a request, from any thread, without waiting for a tick. Throws Error, EngineFull, and
  // std::runtime_error after close() or when the serving thread is dead; it is then as if not
  // called. The request enters at the beginning of a tick.
  Ticket submit(Request request);

  // The next row of every request in flight, after those that have room have entered: true while
  // any is left. What a policy throws comes out before anything has run.
  bool tick();
  void run();  // ticks until none is left

  // Ticks in a thread of its own while there is something to do. A policy that throws ends it, and
  // every request with it. Throws std::runtime_error for a second thread, and after close().
  void serve();
  bool serving() const;

  // Takes in no more. drain: runs what is left to its end, else cancels it; then the serving thread
  // is gone. Not from a model or a callback.
  void close(bool drain = true);

  Counts counts() const;

 private:
  std::unique_ptr<inside::Core> core_;
};

}  // namespace fastsample
#endif
