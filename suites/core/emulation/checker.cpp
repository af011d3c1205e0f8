// Looks at every memory access of kernels that run on the CPU: races, requests, traffic.
//
// The kernels are compiled with -fsanitize=thread, which calls a function at each access to memory;
// the functions are these, in place of the thread sanitizer's own. Counts depend on the kernel and
// its inputs alone, not on the order in which threads and blocks were run.
//
// Races. Two accesses of the same two bytes, one of them a write and not both atomic, race unless
// one happens before the other: within a thread, by a __syncthreads, by a __syncwarp, mbarrier or
// barrier of a cluster that both threads took part in (vector clocks; shuffles and votes order
// nothing), across clusters by __threadfence and an atomic that both used. Launches follow one
// another.
//
// Requests. The accesses of a warp from one place in the code are one request: the first that each
// lane makes there after a barrier, the second, and so on. In global memory a request takes a
// sector for each 32 bytes that it touches; in shared memory a wavefront for each 32 words, and one
// more for each further word of a bank that is asked for at once.
//
// Traffic, in sectors: by request (what the warps ask of L1), by block (what a block would fetch if
// L1 held all it touched), and over all (what memory has to deliver once).

#include <dlfcn.h>

#include <array>
#include <set>
#include <sstream>
#include <tuple>
#include <unordered_map>
#include <unordered_set>

#include "cuda_on_cpu.h"

namespace {

using cuda_on_cpu::running;

constexpr size_t kGranule = 2, kSector = 32, kBanks = 32, kWord = 4;

// An access that later ones are held against.
struct Mark {
  uint32_t block = 0;  // counted over all launches; 0 is none
  uint32_t clock;
  uint32_t site;
  uint16_t thread;  // in the cluster
  bool atomic;
};

struct GlobalCell {
  Mark write, read, other;  // two reads, of two blocks: a writer differs from one of them
};

struct SharedCell {
  Mark write;
  std::vector<Mark> reads;  // since the write, or the last barrier of a block without a cluster
  uint32_t epoch = 0;
};

struct Buffer {
  std::string name;
  const char* begin;
  size_t bytes;
  std::vector<GlobalCell> cells;
};

struct SharedRegion {
  unsigned block;  // of the cluster
  const char* begin;
  size_t bytes;
  std::vector<SharedCell> cells;
};

struct Event {
  uint32_t block, warp, site, epoch, lane, rank;
  int region;  // a buffer, or one of shared memory, counted down from -1
  uint32_t size;
  bool write;
  uint64_t offset;  // from the region's begin, plus the begin's distance from a whole sector

  auto place() const { return std::tie(region, block, warp, site, epoch, write, rank); }
};

// What one kind of access to one buffer comes to.
struct Traffic {
  uint64_t requests = 0, sectors = 0, least_sectors = 0, block_sectors = 0;
  std::unordered_set<uint64_t> touched;
};

struct SiteCounts {
  uint64_t requests = 0, units = 0, least = 0;  // sectors, or wavefronts in shared memory
};

struct Launch {
  const void* kernel;
  dim3 grid, block;
  size_t shared_bytes = 0;
  uint64_t shared_requests = 0, wavefronts = 0, least_wavefronts = 0, unset_reads = 0;
  std::map<std::pair<int, bool>, Traffic> traffic;               // by buffer and whether written
  std::map<std::tuple<uint32_t, bool, bool>, SiteCounts> sites;  // by place, shared, written
};

struct Race {
  const void* kernel;
  std::string kind, memory;
  uint32_t first, second;
  auto operator<=>(const Race&) const = default;
};

std::vector<const void*> site_addresses;
std::unordered_map<const void*, uint32_t> site_numbers;

uint32_t site_number(const void* address) {
  const auto [at, is_new] = site_numbers.try_emplace(address, uint32_t(site_addresses.size()));
  if (is_new) site_addresses.push_back(address);
  return at->second;
}

class Checker : public cuda_on_cpu::Observer {
 public:
  std::vector<Buffer> buffers;
  std::vector<Launch> launches;
  std::map<Race, uint64_t> races;
  bool traffic_alone = false;

  void reset() {
    buffers.clear();
    launches.clear();
    races.clear();
  }

  void launch_begins(const void* kernel) override {
    launches.emplace_back();
    launches.back().kernel = kernel;
    launches.back().grid = gridDim;
    launches.back().block = blockDim;
    first_block_ = next_block_;
    released_.clear();
  }

  void cluster_begins(unsigned blocks, unsigned threads) override {
    threads_ = threads;
    block_ = next_block_;
    next_block_ += blocks;
    epoch_ = 1;
    const size_t all = traffic_alone ? 0 : size_t(blocks) * threads;
    clocks_.assign(all, std::vector<uint32_t>(all, 0));
    for (size_t t = 0; t < all; ++t) clocks_[t][t] = 1;
    lane_epochs_.assign(size_t(blocks) * threads, 0);
    arrivals_.clear();
    acquired_.assign(blocks, {});
    fenced_.assign(blocks, false);
  }

  void cluster_ends() override {
    std::vector<size_t> shared(fenced_.size());
    for (const SharedRegion& region : shared_) shared[region.block] += region.bytes;
    Launch& launch = launches.back();
    launch.shared_bytes = std::max(launch.shared_bytes, *max_element(shared.begin(), shared.end()));
    count_requests();
    events_.clear();
    shared_.clear();
  }

  void shared_array(unsigned block, void* data, size_t bytes) override {
    const std::vector<SharedCell> cells((bytes + kGranule - 1) / kGranule);
    shared_.push_back({block, static_cast<const char*>(data), bytes, cells});
  }

  void block_barrier(unsigned block) override {
    const size_t first = size_t(block) * threads_, end = first + threads_;
    for (size_t t = first; t < end; ++t) ++lane_epochs_[t];
    if (traffic_alone) return;
    std::vector<unsigned> threads(threads_);
    std::iota(threads.begin(), threads.end(), unsigned(first));
    meet(threads);
    if (clocks_.size() == threads_) ++epoch_;
  }

  void warp_barrier(unsigned first, unsigned mask) override {
    std::vector<unsigned> threads;
    bool whole = true;
    const unsigned end = (first / threads_ + 1) * threads_;
    for (unsigned t = first; t < first + 32 && t < end; ++t) {
      if (mask >> (t - first) & 1) {
        threads.push_back(t);
      } else {
        whole &= cuda_on_cpu::fibers[t].state == cuda_on_cpu::State::done;
      }
    }
    if (!traffic_alone) meet(threads);
    if (!whole) return;
    for (const unsigned t : threads) ++lane_epochs_[t];
  }

  void arrives(const void* arrivals) override {
    if (traffic_alone) return;
    std::vector<uint32_t>& seen = arrivals_[arrivals];
    seen.resize(clocks_.size());
    join(seen, clocks_[running]);
    ++clocks_[running][running];
  }

  void waited(const void* arrivals) override {
    const auto seen = arrivals_.find(arrivals);
    if (seen != arrivals_.end()) join(clocks_[running], seen->second);
  }

  void fence() override { fenced_[running / threads_] = true; }

  void access(const void* address, size_t size, bool write, const void* from) override {
    see(static_cast<const char*>(address), size, write, false, from);
  }

  void lands(const void* address, size_t size, const void* from) override {
    see(static_cast<const char*>(address), size, true, false, from, false);
  }

  void atomic(const void* address, size_t size, const void* from) override {
    see(static_cast<const char*>(address), size, true, true, from);
    std::set<uint32_t>& released = released_[address];
    const unsigned block = running / threads_;
    if (fenced_[block]) released.insert(block_ + block);
    acquired_[block].insert(released.begin(), released.end());
  }

  void see(const char* address, size_t size, bool write, bool atomic, const void* from,
           bool counted = true) {
    if (running == cuda_on_cpu::kNobody) return;
    const char* const stack = cuda_on_cpu::fibers[running].stack.get();
    if (address >= stack && address < stack + cuda_on_cpu::kStack) return;
    for (size_t i = 0; i < shared_.size() && !traffic_alone; ++i) {
      SharedRegion& region = shared_[i];
      if (address < region.begin || address >= region.begin + region.bytes) continue;
      const size_t offset = address - region.begin;
      const uint32_t site = site_number(from);
      if (counted) note(-1 - int(i), offset, size, write, site);
      for (size_t c = offset / kGranule; c * kGranule < offset + size; ++c) {
        if (c < region.cells.size()) check(region.cells[c], mark(site, atomic), write);
      }
      return;
    }
    for (size_t i = 0; i < buffers.size(); ++i) {
      Buffer& buffer = buffers[i];
      if (address < buffer.begin || address >= buffer.begin + buffer.bytes) continue;
      const size_t offset = address - buffer.begin;
      const size_t lead = reinterpret_cast<uintptr_t>(buffer.begin) % kSector;
      const uint32_t site = site_number(from);
      if (counted) note(int(i), offset + lead, size, write, site);
      for (size_t c = offset / kGranule; c * kGranule < offset + size; ++c) {
        if (c < buffer.cells.size()) check(buffer, buffer.cells[c], mark(site, atomic), write);
      }
      return;
    }
  }

 private:
  // Blocks are numbered from 1 over all launches: the cluster's first, the launch's first, the
  // next.
  uint32_t block_ = 0, first_block_ = 1, next_block_ = 1, threads_ = 0, epoch_ = 0;
  std::vector<std::vector<uint32_t>> clocks_;  // [a][b]: how much of thread b thread a has seen
  std::vector<uint32_t> lane_epochs_;
  std::unordered_map<const void*, std::vector<uint32_t>> arrivals_;
  std::vector<SharedRegion> shared_;
  std::vector<Event> events_;
  // Of each block of the cluster: whether it has fenced, and the blocks whose work before an atomic
  // it has seen.
  std::vector<bool> fenced_;
  std::vector<std::set<uint32_t>> acquired_;
  std::unordered_map<const void*, std::set<uint32_t>> released_;

  static void join(std::vector<uint32_t>& into, const std::vector<uint32_t>& other) {
    for (size_t i = 0; i < into.size(); ++i) into[i] = std::max(into[i], other[i]);
  }

  void meet(const std::vector<unsigned>& threads) {
    std::vector<uint32_t> all(clocks_.size(), 0);
    for (const unsigned t : threads) join(all, clocks_[t]);
    for (const unsigned t : threads) {
      clocks_[t] = all;
      ++clocks_[t][t];
    }
  }

  Mark mark(uint32_t site, bool atomic) const {
    return {block_ + running / threads_, clocks_[running][running], site, uint16_t(running),
            atomic};
  }

  void note(int region, uint64_t offset, size_t size, bool write, uint32_t site) {
    const uint32_t block = running / threads_, thread = running % threads_;
    events_.push_back({block, thread / 32, site, lane_epochs_[running], thread % 32, 0, region,
                       uint32_t(size), write, offset});
  }

  // ----------------------------------------------------------------------------------- races

  bool unordered(const Mark& before, const Mark& now) const {
    if (before.block < first_block_ || (before.atomic && now.atomic)) return false;
    if (before.block < block_) return !acquired_[now.block - block_].count(before.block);
    return before.thread != now.thread && clocks_[now.thread][before.thread] < before.clock;
  }

  void hold(const Mark& before, const Mark& now, const std::string& memory) {
    if (!unordered(before, now)) return;
    const char* kind = before.block != now.block               ? "blocks"
                       : before.thread / 32 == now.thread / 32 ? "warp"
                                                               : "block";
    const auto [first, second] = std::minmax(before.site, now.site);
    ++races[{launches.back().kernel, kind, memory, first, second}];
  }

  void check(SharedCell& cell, const Mark& now, bool write) {
    if (cell.epoch != epoch_) cell.reads.clear();
    cell.epoch = epoch_;
    hold(cell.write, now, "shared");
    if (write) {
      for (const Mark& read : cell.reads) hold(read, now, "shared");
      cell.reads.clear();
      cell.write = now;
      return;
    }
    if (!cell.write.block) ++launches.back().unset_reads;
    for (Mark& read : cell.reads) {
      if (read.thread != now.thread) continue;
      read = now;
      return;
    }
    cell.reads.push_back(now);
  }

  void check(const Buffer& buffer, GlobalCell& cell, const Mark& now, bool write) {
    hold(cell.write, now, buffer.name);
    if (write) {
      hold(cell.read, now, buffer.name);
      hold(cell.other, now, buffer.name);
      cell.write = now;
      return;
    }
    if (cell.read.block != now.block) cell.other = cell.read;
    cell.read = now;
  }

  // -------------------------------------------------------------------------------- requests

  void count_requests() {
    const auto by_lane = [](const Event& e) {
      return std::tie(e.region, e.block, e.warp, e.site, e.epoch, e.write, e.lane);
    };
    std::stable_sort(events_.begin(), events_.end(),
                     [&](const Event& a, const Event& b) { return by_lane(a) < by_lane(b); });
    for (size_t i = 1; i < events_.size(); ++i) {
      if (by_lane(events_[i]) == by_lane(events_[i - 1])) events_[i].rank = events_[i - 1].rank + 1;
    }
    std::stable_sort(events_.begin(), events_.end(),
                     [](const Event& a, const Event& b) { return a.place() < b.place(); });
    // By buffer, whether written, and block.
    std::map<std::tuple<int, bool, uint32_t>, std::unordered_set<uint64_t>> touched;
    for (size_t begin = 0, end; begin < events_.size(); begin = end) {
      for (end = begin; end < events_.size() && events_[end].place() == events_[begin].place();)
        ++end;
      const Event& first = events_[begin];
      if (first.region < 0) {
        count_shared(begin, end);
      } else {
        count_global(begin, end, touched[{first.region, first.write, first.block}]);
      }
    }
    for (const auto& [key, sectors] : touched) {
      const auto [region, write, block] = key;
      Traffic& traffic = launches.back().traffic[{region, write}];
      traffic.block_sectors += sectors.size();
      traffic.touched.insert(sectors.begin(), sectors.end());
    }
  }

  void count(const Event& event, uint64_t units, uint64_t least) {
    SiteCounts& site = launches.back().sites[{event.site, event.region < 0, event.write}];
    ++site.requests;
    site.units += units;
    site.least += least;
  }

  void count_global(size_t begin, size_t end, std::unordered_set<uint64_t>& touched) {
    std::set<uint64_t> sectors;
    std::vector<std::pair<uint64_t, uint64_t>> ranges;
    for (size_t i = begin; i < end; ++i) {
      const uint64_t from = events_[i].offset, to = from + events_[i].size;
      for (uint64_t s = from / kSector; s * kSector < to; ++s) sectors.insert(s);
      ranges.push_back({from, to});
    }
    std::sort(ranges.begin(), ranges.end());
    uint64_t bytes = 0, reached = 0;
    for (const auto& [from, to] : ranges) {
      bytes += to > reached ? to - std::max(from, reached) : 0;
      reached = std::max(reached, to);
    }
    const uint64_t least = (bytes + kSector - 1) / kSector;
    Traffic& traffic = launches.back().traffic[{events_[begin].region, events_[begin].write}];
    ++traffic.requests;
    traffic.sectors += sectors.size();
    traffic.least_sectors += least;
    touched.insert(sectors.begin(), sectors.end());
    count(events_[begin], sectors.size(), least);
  }

  // Lanes are served 32, 16 or 8 at a time, so that at most 32 words are asked for at once.
  void count_shared(size_t begin, size_t end) {
    const uint32_t at_once =
        uint32_t(kBanks * kWord / std::max<uint64_t>(kWord, events_[begin].size));
    std::map<uint32_t, std::array<std::set<uint64_t>, kBanks>> phases;
    std::map<uint32_t, std::set<uint64_t>> words;
    for (size_t i = begin; i < end; ++i) {
      const Event& e = events_[i];
      const uint32_t phase = e.lane / std::max(1u, at_once);
      for (uint64_t w = e.offset / kWord; w * kWord < e.offset + e.size; ++w) {
        phases[phase][w % kBanks].insert(w);
        words[phase].insert(w);
      }
    }
    uint64_t wavefronts = 0, least = 0;
    for (const auto& [phase, banks] : phases) {
      size_t most = 0;
      for (const std::set<uint64_t>& bank : banks) most = std::max(most, bank.size());
      wavefronts += most;
      least += (words[phase].size() + kBanks - 1) / kBanks;
    }
    Launch& launch = launches.back();
    ++launch.shared_requests;
    launch.wavefronts += wavefronts;
    launch.least_wavefronts += least;
    count(events_[begin], wavefronts, least);
  }
};

Checker checker;
const bool kObserving = (cuda_on_cpu::observer = &checker, true);

// ------------------------------------------------------------------------------------------ JSON

// An address in this library, as addr2line takes it; a return address lies behind its call.
uint64_t offset_in_library(const void* address, bool returns_to) {
  Dl_info info;
  dladdr(address, &info);
  return static_cast<const char*>(address) - static_cast<const char*>(info.dli_fbase) - returns_to;
}

struct Json {
  std::ostringstream text;
  bool first = true;

  Json& key(const char* name) {
    text << (first ? "" : ",") << '"' << name << "\":";
    first = true;
    return *this;
  }
  template <typename T>
  Json& field(const char* name, const T& value) {
    key(name).text << value;
    first = false;
    return *this;
  }
  Json& text_field(const char* name, const std::string& value) {
    return field(name, '"' + value + '"');
  }
  Json& open(char bracket) {
    text << (first ? "" : ",") << bracket;
    first = true;
    return *this;
  }
  Json& close(char bracket) {
    text << bracket;
    first = false;
    return *this;
  }
};

void tell(Json& json, const Launch& launch) {
  json.open('{').field("kernel", offset_in_library(launch.kernel, false));
  json.field("blocks", uint64_t(launch.grid.x) * launch.grid.y * launch.grid.z);
  json.field("threads", launch.block.x * launch.block.y * launch.block.z);
  json.field("shared_bytes", launch.shared_bytes);
  json.key("shared").open('{').field("requests", launch.shared_requests);
  json.field("wavefronts", launch.wavefronts).field("least_wavefronts", launch.least_wavefronts);
  json.field("unset_reads", launch.unset_reads).close('}');
  json.key("traffic").open('[');
  for (const auto& [key, traffic] : launch.traffic) {
    json.open('{').text_field("buffer", checker.buffers[key.first].name);
    json.text_field("direction", key.second ? "write" : "read");
    json.field("requests", traffic.requests).field("sectors", traffic.sectors);
    json.field("least_sectors", traffic.least_sectors);
    json.field("block_sectors", traffic.block_sectors);
    json.field("touched_sectors", traffic.touched.size()).close('}');
  }
  json.close(']').key("sites").open('[');
  for (const auto& [key, counts] : launch.sites) {
    const auto [site, shared, write] = key;
    json.open('{').field("site", offset_in_library(site_addresses[site], true));
    json.text_field("memory", shared ? "shared" : "global");
    json.text_field("direction", write ? "write" : "read");
    json.field("requests", counts.requests).field("units", counts.units);
    json.field("least", counts.least).close('}');
  }
  json.close(']').close('}');
}

std::string told;

}  // namespace

#define DOOR extern "C" __attribute__((visibility("default")))

// Forgets buffers, launches and findings.
DOOR void checker_reset() { checker.reset(); }

// Looks at global memory alone, and not for races, until the next call: several times as fast, and
// with no memory for each byte of a buffer.
DOOR void checker_traffic_alone(int alone) { checker.traffic_alone = alone; }

// Names memory that kernels are given; what lies outside all of it is not looked at.
DOOR void checker_buffer(const char* name, const void* begin, size_t bytes) {
  const size_t cells = checker.traffic_alone ? 0 : (bytes + kGranule - 1) / kGranule;
  checker.buffers.push_back(
      {name, static_cast<const char*>(begin), bytes, std::vector<GlobalCell>(cells)});
}

// All since the reset, as JSON; valid until the next call.
DOOR const char* checker_report() {
  Json json;
  json.open('{').key("launches").open('[');
  for (const Launch& launch : checker.launches) tell(json, launch);
  json.close(']').key("races").open('[');
  for (const auto& [race, count] : checker.races) {
    json.open('{').field("kernel", offset_in_library(race.kernel, false));
    json.text_field("between", race.kind).text_field("memory", race.memory);
    json.key("sites").open('[');
    json.text << offset_in_library(site_addresses[race.first], true) << ','
              << offset_in_library(site_addresses[race.second], true);
    json.close(']').field("count", count).close('}');
  }
  json.close(']').close('}');
  told = json.text.str();
  return told.c_str();
}

// ------------------------------------------------------- what the compiler calls at each access

#define HERE __builtin_return_address(0)
#define SIZE(bytes)                                                                          \
  DOOR void __tsan_read##bytes(const char* a) { checker.see(a, bytes, false, false, HERE); } \
  DOOR void __tsan_write##bytes(const char* a) { checker.see(a, bytes, true, false, HERE); } \
  DOOR void __tsan_unaligned_read##bytes(const char* a) {                                    \
    checker.see(a, bytes, false, false, HERE);                                               \
  }                                                                                          \
  DOOR void __tsan_unaligned_write##bytes(const char* a) {                                   \
    checker.see(a, bytes, true, false, HERE);                                                \
  }
SIZE(1)
SIZE(2)
SIZE(4)
SIZE(8)
SIZE(16)
DOOR void __tsan_read_range(const char* a, size_t bytes) {
  checker.see(a, bytes, false, false, HERE);
}
DOOR void __tsan_write_range(const char* a, size_t bytes) {
  checker.see(a, bytes, true, false, HERE);
}
DOOR void __tsan_init() {}
DOOR void __tsan_func_entry(void*) {}
DOOR void __tsan_func_exit() {}
DOOR void __tsan_vptr_read(void*) {}
DOOR void __tsan_vptr_update(void*, void*) {}
DOOR char __tsan_atomic8_load(const volatile char* a, int) { return *a; }  // of statics' guards
