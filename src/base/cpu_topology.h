// The processors this process may use.
#pragma once

#include <filesystem>
#include <vector>

namespace calandra {

// One entry per physical core that the affinity mask of the process touches: the logical processors of it that are
// allowed.
std::vector<std::vector<int>> usable_cores();

// Cores, or fewer when a container limits the processor time: at least 1.
int default_thread_count();

// Processors' worth of time that the cgroups of a process allow (v2 cpu.max, v1 cpu.cfs_quota_us), the least over all
// levels; 0 without a limit. `membership` is /proc/self/cgroup, `mount` is /sys/fs/cgroup.
double cgroup_cpu_limit(const std::filesystem::path& membership, const std::filesystem::path& mount);

}  // namespace calandra
