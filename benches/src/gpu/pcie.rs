//! `cargo bench --bench pcie [-- --json FILE]`: copies between host and GPU, in GB/s.
//!
//! From 4 KiB to 1 GiB; to the device, to the host, and both at once (the sum); from memory that the driver does not know
//! (pageable), has allocated (pinned) or was told of (registered, which is what the engine's ring is). Copies of a round
//! are queued one behind the other and waited for once; each takes the next part of 64 MiB or of the whole, so that small
//! ones do not come from the processor's caches.

use super::driver::{Context, Host, Kind, Memory, Stream};
use crate::{Row, median, quick};
use std::time::Instant;

const SIZES: [usize; 10] =
    [4 << 10, 16 << 10, 64 << 10, 256 << 10, 1 << 20, 4 << 20, 16 << 20, 64 << 20, 256 << 20, 1 << 30];
/// What small copies take turns in.
const REGION: usize = 64 << 20;
/// Bytes of a round, and most copies.
const ROUND: usize = 256 << 20;
const COPIES: usize = 512;

#[derive(Clone, Copy, PartialEq)]
enum Way {
    Up,
    Down,
    Both,
}

/// Measures and reports.
pub fn main() {
    let Some(cuda) = super::open() else { return };
    let most = (super::room(&cuda) / 4).min(if quick() { 64 << 10 } else { 1 << 30 }) as usize;
    let sizes: Vec<usize> = SIZES.into_iter().filter(|&size| size <= most).collect();
    let Some(&largest) = sizes.last() else {
        println!("skipped: no room for a copy of {} bytes", SIZES[0]);
        return;
    };
    let context = Context::enter();
    let region = if quick() { largest } else { largest.max(REGION) };
    let block = super::random(region.min(16 << 20), 5);
    let memory = || Memory::filled(&context, region, &block);
    let (Some(here), Some(there)) = (memory(), memory()) else {
        println!("skipped: no room for copies of {region} bytes");
        return;
    };
    let streams = [Stream::new(&context), Stream::new(&context)];
    let mut rows: Vec<Row> = Vec::new();
    for kind in [Kind::Pinned, Kind::Registered, Kind::Pageable] {
        let host = || Host::new(&context, kind, region, &block);
        let (Some(from), Some(mut to)) = (host(), host()) else {
            println!("skipped: {} bytes of {kind:?} memory: the driver refuses", 2 * region);
            continue;
        };
        for way in [Way::Up, Way::Down, Way::Both] {
            for &size in &sizes {
                let copies = (ROUND / size).clamp(1, if quick() { 2 } else { COPIES });
                let mut round = || {
                    let start = Instant::now();
                    for at in (0..copies).map(|i| i * size % (region / size * size)) {
                        if way != Way::Down {
                            streams[0].up(&from, &here, at, size);
                        }
                        if way != Way::Up {
                            streams[1].down(&there, &mut to, at, size);
                        }
                    }
                    streams.iter().for_each(Stream::finish);
                    let ways = if way == Way::Both { 2 } else { 1 };
                    (ways * copies * size) as f64 / start.elapsed().as_secs_f64()
                };
                round();
                let rate = median(&mut (0..super::rounds()).map(|_| round()).collect::<Vec<_>>());
                rows.push(Row::new(&case(kind, way, size), rate / 1e9, "GB/s"));
            }
        }
    }
    // Against the same way at its best: the largest copy of pinned memory.
    let best =
        |way| rows.iter().find(|row| row.case == case(Kind::Pinned, way, largest)).map(|row| row.value);
    let bests = [Way::Up, Way::Down, Way::Both].map(best);
    let names = [Way::Up, Way::Down, Way::Both].map(name);
    for row in &mut rows {
        let way = names.iter().position(|name| row.case.starts_with(name));
        if let Some(best) = way.and_then(|way| bests[way]) {
            *row = row.clone().against(row.value / best, "the largest pinned copy");
        }
    }
    super::finish(&cuda, "pcie", &rows);
}

fn name(way: Way) -> &'static str {
    match way {
        Way::Up => "host to device",
        Way::Down => "device to host",
        Way::Both => "both ways",
    }
}

fn case(kind: Kind, way: Way, size: usize) -> String {
    let size = match size {
        size if size < 1 << 20 => format!("{} KiB", size >> 10),
        size if size < 1 << 30 => format!("{} MiB", size >> 20),
        size => format!("{} GiB", size >> 30),
    };
    format!("{}, {}, {size}", name(way), format!("{kind:?}").to_lowercase())
}
