//! How many threads compute, and where.
//!
//! Weights come out of memory as fast as memory gives them, and two threads of one core get no more of it than one does.
//! So there is a thread for each physical core that the process may use, and no more than its control group
//! grants. Where memory has several nodes (NUMA), threads are spread over them evenly and stay in theirs, so that all nodes'
//! memory is read through their own controllers; where there is one, the system places threads.

use std::collections::BTreeMap;
use std::num::NonZeroUsize;
use std::path::Path;
use std::sync::OnceLock;

/// A logical processor that the process may use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Processor {
    id: usize,
    /// Package, and core in it.
    core: (usize, usize),
    node: usize,
}

/// The processors of nodes that threads are spread over; empty where they are left alone.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Places {
    nodes: Vec<Vec<usize>>,
}

/// The processors that one thread may run on; any if there are none.
#[derive(Debug, Default)]
pub(super) struct Place(Vec<usize>);

/// As many threads as pay, and their places: looked up once, for it takes some files for each processor.
pub(super) fn machine() -> &'static (usize, Places) {
    static MACHINE: OnceLock<(usize, Places)> = OnceLock::new();
    MACHINE.get_or_init(look)
}

fn look() -> (usize, Places) {
    // What the affinity of the process and the quota of its control groups grant.
    let granted = std::thread::available_parallelism().map_or(1, NonZeroUsize::get);
    let read = |path: &str| std::fs::read_to_string(Path::new("/sys/devices/system").join(path)).ok();
    match processors(&allowed(), read) {
        Some(all) => choose(&all, granted),
        None => (granted, Places::default()),
    }
}

/// Threads and places for processors of which `granted` may be busy at once.
fn choose(all: &[Processor], granted: usize) -> (usize, Places) {
    let mut cores: Vec<_> = all.iter().map(|it| it.core).collect();
    cores.sort_unstable();
    cores.dedup();
    let mut nodes: BTreeMap<usize, Vec<usize>> = BTreeMap::new();
    for processor in all {
        nodes.entry(processor.node).or_default().push(processor.id);
    }
    let nodes = if nodes.len() > 1 { nodes.into_values().collect() } else { Vec::new() };
    (cores.len().min(granted).max(1), Places { nodes })
}

/// Processors in `ids` as the system describes them; `None` where it does not.
fn processors(ids: &[usize], read: impl Fn(&str) -> Option<String>) -> Option<Vec<Processor>> {
    let mut node_of = BTreeMap::new();
    for node in list(&read("node/online").unwrap_or_default()) {
        for id in list(&read(&format!("node/node{node}/cpulist"))?) {
            node_of.insert(id, node);
        }
    }
    let number = |id: usize, name: &str| read(&format!("cpu/cpu{id}/topology/{name}"))?.trim().parse().ok();
    let processor = |&id: &usize| {
        // Some virtual machines and ARM systems give -1 for what they do not know.
        let core = (number(id, "physical_package_id").unwrap_or(0), number(id, "core_id")?);
        Some(Processor { id, core, node: node_of.get(&id).copied().unwrap_or(0) })
    };
    ids.iter().map(processor).collect::<Option<Vec<_>>>().filter(|all| !all.is_empty())
}

/// A list as the system writes them: `0-3,8,10-11`. What cannot be read is left out.
fn list(text: &str) -> Vec<usize> {
    let range = |part: &str| -> Option<std::ops::RangeInclusive<usize>> {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        Some(first.parse().ok()?..=last.parse().ok()?)
    };
    text.trim().split(',').filter_map(range).flatten().collect()
}

impl Places {
    /// None that a thread is bound to.
    #[cfg(test)]
    pub(super) fn none() -> Places {
        Places::default()
    }

    /// That of a hand; the caller, hand 0, counts as one in the first node though it is not bound.
    pub(super) fn of(&self, hand: usize) -> Place {
        match self.nodes.len() {
            0 => Place::default(),
            nodes => Place(self.nodes[hand % nodes].clone()),
        }
    }
}

#[cfg(target_os = "linux")]
mod system {
    use super::Place;
    use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};

    /// Processors that this thread may use.
    pub(super) fn allowed() -> Vec<usize> {
        let set = sched_getaffinity(None).unwrap_or_else(|_| CpuSet::new());
        (0..CpuSet::MAX_CPU).filter(|&id| set.is_set(id)).collect()
    }

    impl Place {
        /// Keeps this thread here. Where the system refuses, it runs anywhere, and nothing but speed is lost.
        pub(in super::super) fn take(&self) {
            let mut set = CpuSet::new();
            self.0.iter().filter(|&&id| id < CpuSet::MAX_CPU).for_each(|&id| set.set(id));
            if set.count() > 0 {
                let _ = sched_setaffinity(None, &set);
            }
        }
    }
}

#[cfg(not(target_os = "linux"))]
mod system {
    /// Not known.
    pub(super) fn allowed() -> Vec<usize> {
        Vec::new()
    }

    impl super::Place {
        /// The system places threads.
        pub(in super::super) fn take(&self) {}
    }
}

use system::allowed;

#[cfg(all(test, not(feature = "loom")))]
mod tests {
    use super::*;

    #[test]
    fn lists() {
        assert_eq!(list("0-3,8,10-11\n"), [0, 1, 2, 3, 8, 10, 11]);
        assert_eq!(list("5"), [5]);
        assert_eq!(list(""), [] as [usize; 0]);
        assert_eq!(list("x,1-,2"), [2]);
    }

    /// Two packages of two cores of two threads each, memory beside each.
    fn server(path: &str) -> Option<String> {
        let text = match path {
            "node/online" => "0-1",
            "node/node0/cpulist" => "0-1,4-5",
            "node/node1/cpulist" => "2-3,6-7",
            _ => {
                let (id, name) = path.strip_prefix("cpu/cpu")?.split_once("/topology/")?;
                let id: usize = id.parse().ok()?;
                return Some(match name {
                    "physical_package_id" => format!("{}\n", id / 2 % 2),
                    _ => format!("{}\n", id % 2),
                });
            }
        };
        Some(format!("{text}\n"))
    }

    #[test]
    fn a_thread_for_each_core_spread_over_nodes() {
        let all: Vec<_> = (0..8).collect();
        let processors = super::processors(&all, server).unwrap();
        let (threads, places) = choose(&processors, 8);
        assert_eq!(threads, 4);
        assert_eq!(places.nodes, [[0, 1, 4, 5], [2, 3, 6, 7]]);
        assert_eq!([1, 2, 3].map(|hand| places.of(hand).0[0]), [2, 0, 2]);
        // A quota of one and a half processors counts as two; an affinity may leave one node.
        assert_eq!(choose(&processors, 2).0, 2);
        let few = super::processors(&[0, 4, 1], server).unwrap();
        assert_eq!(choose(&few, 3), (2, Places::default()));
    }

    #[test]
    fn where_the_system_says_nothing() {
        assert_eq!(super::processors(&[0, 1], |_| None), None);
        assert_eq!(super::processors(&[], server), None);
        assert!(machine().0 >= 1);
        Place(vec![usize::MAX]).take();
    }
}
