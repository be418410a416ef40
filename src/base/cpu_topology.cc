#include "base/cpu_topology.h"

#include <hwloc.h>
#include <sched.h>

#include <algorithm>
#include <cmath>
#include <fstream>
#include <sstream>
#include <string>

namespace calandra {
namespace {

std::vector<int> allowed_processors() {
  std::vector<int> found;
  cpu_set_t set;
  CPU_ZERO(&set);
  if (sched_getaffinity(0, sizeof set, &set) != 0) return {0};
  for (int i = 0; i < CPU_SETSIZE; ++i)
    if (CPU_ISSET(i, &set)) found.push_back(i);
  return found;
}

// "quota period" of one cgroup folder in processors; 0 when there is no limit or no such file.
double limit_of(const std::filesystem::path& folder) {
  double quota = 0, period = 0;
  if (std::ifstream v2(folder / "cpu.max"); v2) {
    v2 >> quota >> period;  // "max 100000": the word is no number and quota stays 0
  } else {
    std::ifstream(folder / "cpu.cfs_quota_us") >> quota;  // -1 without a limit
    std::ifstream(folder / "cpu.cfs_period_us") >> period;
  }
  return quota > 0 && period > 0 ? quota / period : 0;
}

}  // namespace

double cgroup_cpu_limit(const std::filesystem::path& membership, const std::filesystem::path& mount) {
  double least = 0;
  std::ifstream in(membership);
  for (std::string line; std::getline(in, line);) {  // "0::/path" (v2) or "1:cpu,cpuacct:/path" (v1)
    const size_t first = line.find(':'), second = line.find(':', first + 1);
    if (first == std::string::npos || second == std::string::npos) continue;
    const std::string controllers = line.substr(first + 1, second - first - 1);
    std::vector<std::filesystem::path> roots;
    if (controllers.empty()) {
      roots = {mount, mount / "unified"};
    } else {
      std::istringstream words(controllers);
      bool has_cpu = false;
      for (std::string word; std::getline(words, word, ',');) has_cpu |= word == "cpu";
      if (has_cpu) roots = {mount / controllers, mount / "cpu"};
    }
    // A container may not see the folder that the host named; its own limit then stands at the root of the mount.
    for (const std::filesystem::path& root : roots)
      for (std::filesystem::path path = line.substr(second + 1);; path = path.parent_path()) {
        const double limit = limit_of(root / path.relative_path());
        if (limit > 0 && (least == 0 || limit < least)) least = limit;
        if (!path.has_relative_path()) break;
      }
  }
  return least;
}

std::vector<std::vector<int>> usable_cores() {
  const std::vector<int> allowed = allowed_processors();
  std::vector<std::vector<int>> cores;
  hwloc_topology_t topology = nullptr;
  if (hwloc_topology_init(&topology) == 0) {
    hwloc_topology_set_all_types_filter(topology, HWLOC_TYPE_FILTER_KEEP_NONE);
    hwloc_topology_set_type_filter(topology, HWLOC_OBJ_CORE, HWLOC_TYPE_FILTER_KEEP_ALL);
    if (hwloc_topology_load(topology) == 0)
      for (hwloc_obj_t core = nullptr;
           (core = hwloc_get_next_obj_by_type(topology, HWLOC_OBJ_CORE, core)) != nullptr;) {
        std::vector<int> processors;
        for (const int p : allowed)
          if (hwloc_bitmap_isset(core->cpuset, static_cast<unsigned>(p))) processors.push_back(p);
        if (!processors.empty()) cores.push_back(processors);
      }
    hwloc_topology_destroy(topology);
  }
  if (cores.empty())  // no topology visible: every processor counts as a core
    for (const int p : allowed) cores.push_back({p});
  return cores;
}

int default_thread_count() {
  int count = static_cast<int>(usable_cores().size());
  const double limit = cgroup_cpu_limit("/proc/self/cgroup", "/sys/fs/cgroup");
  if (limit > 0) count = std::min(count, static_cast<int>(std::ceil(limit)));
  return std::max(count, 1);
}

}  // namespace calandra
