//! `cargo bench --bench experts [-- --trace FILE] [--json FILE]`: hit rates of the cache for experts under
//! several policies, as a share of what foresight would hit.
//!
//! A simulation without I/O and without a clock: its numbers are the same on every machine. Each token goes
//! through all layers and requests `TOP_K` experts of each; a miss replaces an expert that the layer is not
//! about to use or just using. `--trace` adds recorded requests: a line for each token and layer, `token layer expert …`.

use airllm_benches::{Row, report};
use airllm_stream::Policy;
use std::collections::BTreeSet;
use std::path::Path;

const LAYERS: usize = 24;
const EXPERTS: usize = 64;
const TOP_K: usize = 6;
const TOKENS: usize = 600;
const SHARES: [f64; 3] = [0.05, 0.1, 0.25];

/// The experts that one layer uses for one token.
#[derive(Debug, Clone)]
struct Request {
    token: u64,
    layer: usize,
    /// Numbered over all layers.
    units: Vec<usize>,
}

struct Trace {
    name: String,
    units: usize,
    /// The layer of each unit.
    layer: Vec<usize>,
    requests: Vec<Request>,
}

fn main() {
    let args: Vec<String> = std::env::args().collect();
    let value = |flag: &str| args.iter().position(|a| a == flag).and_then(|i| args.get(i + 1));
    let mut traces = vec![
        synthetic("uniform", Choice { zipf: 0.0, keep: 0.0, drift: 0 }),
        synthetic("Zipf 0.7, new every 100 tokens", Choice { zipf: 0.7, keep: 0.0, drift: 100 }),
        synthetic("sticky 0.8", Choice { zipf: 0.0, keep: 0.8, drift: 0 }),
        synthetic("sticky 0.4, Zipf 0.7", Choice { zipf: 0.7, keep: 0.4, drift: 0 }),
    ];
    if let Some(file) = value("--trace") {
        traces.push(recorded(Path::new(file)));
    }
    let mut rows = Vec::new();
    for trace in &traces {
        for share in SHARES {
            let slots = (trace.units as f64 * share) as usize;
            let best = foresight(trace, slots);
            let mut row = |name: &str, rate: f64| {
                let case = format!("{}, {:.0} % cached: {name}", trace.name, share * 100.0);
                rows.push(Row::new(&case, rate * 100.0, "% hits").against(rate / best, "foresight"));
            };
            let aging = |half_life: f64, fair: bool| Aging {
                policy: Policy::new(trace.units, half_life),
                layer: fair.then_some(trace.layer.as_slice()),
                slots,
            };
            row("LRU", hits(trace, slots, &mut Lru::new(trace.units)));
            let mut fair = FairLru { clock: 0, aging: aging(0.5, true) };
            row("LRU, fair to layers", hits(trace, slots, &mut fair));
            for half_life in [4.0, 64.0] {
                let name = format!("aging, half-life {half_life}");
                row(&name, hits(trace, slots, &mut aging(half_life, false)));
                let name = format!("{name}, fair to layers");
                row(&name, hits(trace, slots, &mut aging(half_life, true)));
            }
        }
    }
    report("experts", "cargo bench --bench experts", &rows, value("--json").map(Path::new));
}

/// Says which of the experts in memory goes first.
trait Replace {
    fn touch(&mut self, unit: usize, token: u64);
    /// One of `from`, which is not empty, to make room for `newcomer`.
    fn victim(&mut self, from: &[usize], newcomer: usize) -> usize;
    fn enter(&mut self, _unit: usize) {}
    fn leave(&mut self, _unit: usize) {}
}

/// Least recently requested first.
struct Lru {
    last: Vec<u64>,
    clock: u64,
}

impl Lru {
    fn new(units: usize) -> Self {
        Self { last: vec![0; units], clock: 0 }
    }
}

impl Replace for Lru {
    fn touch(&mut self, unit: usize, _: u64) {
        self.clock += 1;
        self.last[unit] = self.clock;
    }
    fn victim(&mut self, from: &[usize], _: usize) -> usize {
        *from.iter().min_by_key(|&&unit| self.last[unit]).expect("there are candidates")
    }
}

/// Least recently requested first, with the engine's fairness: time is counted in requests, and one weighs
/// more than all that came before it together.
struct FairLru<'a> {
    clock: u64,
    aging: Aging<'a>,
}

impl Replace for FairLru<'_> {
    fn touch(&mut self, unit: usize, _: u64) {
        self.clock += 1;
        self.aging.touch(unit, self.clock);
    }
    fn victim(&mut self, from: &[usize], newcomer: usize) -> usize {
        self.aging.victim(from, newcomer)
    }
    fn enter(&mut self, unit: usize) {
        self.aging.enter(unit);
    }
    fn leave(&mut self, unit: usize) {
        self.aging.leave(unit);
    }
}

/// The engine's own policy; all layers are one place to it where it is not to be fair.
struct Aging<'a> {
    policy: Policy,
    layer: Option<&'a [usize]>,
    slots: usize,
}

impl Replace for Aging<'_> {
    fn touch(&mut self, unit: usize, token: u64) {
        self.policy.touch(unit, self.layer.map_or(0, |layer| layer[unit]), token);
    }
    fn victim(&mut self, from: &[usize], newcomer: usize) -> usize {
        self.policy.victim(from.iter().copied(), newcomer, self.slots).expect("there are candidates")
    }
    fn enter(&mut self, unit: usize) {
        self.policy.enter(unit);
    }
    fn leave(&mut self, unit: usize) {
        self.policy.leave(unit);
    }
}

/// The share of requested experts that were in memory.
fn hits(trace: &Trace, slots: usize, policy: &mut dyn Replace) -> f64 {
    let mut memory: Vec<usize> = Vec::new();
    let (mut hit, mut asked) = (0, 0);
    for request in &trace.requests {
        request.units.iter().for_each(|&unit| policy.touch(unit, request.token));
        for (at, &unit) in request.units.iter().enumerate() {
            asked += 1;
            if memory.contains(&unit) {
                hit += 1;
                continue;
            }
            if memory.len() >= slots {
                // Neither what this layer will still use nor what it computes with while this is read.
                let kept = &request.units[at.saturating_sub(1)..];
                let from: Vec<_> = memory.iter().copied().filter(|unit| !kept.contains(unit)).collect();
                if from.is_empty() {
                    continue; // Flows through.
                }
                let victim = policy.victim(&from, unit);
                policy.leave(victim);
                memory.retain(|&other| other != victim);
            }
            policy.enter(unit);
            memory.push(unit);
        }
    }
    f64::from(hit) / f64::from(asked)
}

/// The most that any policy can hit: what is needed last goes first (Belady).
fn foresight(trace: &Trace, slots: usize) -> f64 {
    let mut uses = vec![std::collections::VecDeque::new(); trace.units];
    for (at, request) in trace.requests.iter().enumerate() {
        request.units.iter().for_each(|&unit| uses[unit].push_back(at));
    }
    let mut memory: BTreeSet<(usize, usize)> = BTreeSet::new();
    let (mut hit, mut asked) = (0, 0);
    for (at, request) in trace.requests.iter().enumerate() {
        for &unit in &request.units {
            uses[unit].pop_front();
            asked += 1;
            hit += i32::from(memory.remove(&(at, unit)));
            memory.insert((uses[unit].front().copied().unwrap_or(usize::MAX), unit));
            if memory.len() > slots {
                memory.pop_last();
            }
        }
    }
    f64::from(hit) / f64::from(asked)
}

/// How a synthetic router chooses.
#[derive(Clone, Copy)]
struct Choice {
    /// Exponent of the experts' popularity, in an order that each layer has for itself.
    zipf: f64,
    /// Chance that an expert of the last token is used again.
    keep: f64,
    /// Tokens after which popularity is dealt out anew; 0 for never.
    drift: u64,
}

fn synthetic(name: &str, choice: Choice) -> Trace {
    let mut random = Random(0x9E37_79B9_7F4A_7C15);
    let mut order: Vec<Vec<usize>> = vec![(0..EXPERTS).collect(); LAYERS];
    let mut last: Vec<Vec<usize>> = vec![Vec::new(); LAYERS];
    let weights: Vec<f64> = (0..EXPERTS).map(|rank| ((rank + 1) as f64).powf(-choice.zipf)).collect();
    let total: f64 = weights.iter().sum();
    let mut requests = Vec::new();
    for token in 0..TOKENS as u64 {
        if token == 0 || (choice.drift > 0 && token % choice.drift == 0) {
            order.iter_mut().for_each(|order| random.shuffle(order));
        }
        for layer in 0..LAYERS {
            let mut chosen: Vec<usize> =
                last[layer].iter().copied().filter(|_| random.unit() < choice.keep).collect();
            while chosen.len() < TOP_K {
                let mut left = random.unit() * total;
                let rank = weights.iter().position(|weight| {
                    left -= weight;
                    left < 0.0
                });
                let expert = order[layer][rank.unwrap_or(EXPERTS - 1)];
                if !chosen.contains(&expert) {
                    chosen.push(expert);
                }
            }
            last[layer].clone_from(&chosen);
            chosen.sort_unstable();
            let units = chosen.iter().map(|expert| layer * EXPERTS + expert).collect();
            requests.push(Request { token, layer, units });
        }
    }
    let layer = (0..LAYERS * EXPERTS).map(|unit| unit / EXPERTS).collect();
    Trace { name: name.to_owned(), units: LAYERS * EXPERTS, layer, requests }
}

fn recorded(file: &Path) -> Trace {
    let text = std::fs::read_to_string(file).expect("the trace can be read");
    let lines: Vec<Vec<usize>> = text
        .lines()
        .map(|line| line.split_whitespace().map(|word| word.parse().expect("a trace has numbers")).collect())
        .collect();
    let experts = lines.iter().flat_map(|line| &line[2..]).max().map_or(0, |last| last + 1);
    let requests: Vec<_> = lines
        .iter()
        .map(|line| Request {
            token: line[0] as u64,
            layer: line[1],
            units: line[2..].iter().map(|expert| line[1] * experts + expert).collect(),
        })
        .collect();
    let layers = requests.iter().map(|request| request.layer + 1).max().unwrap_or(0);
    let layer = (0..layers * experts).map(|unit| unit / experts).collect();
    let name = file.file_stem().map_or("recorded".into(), |stem| stem.to_string_lossy().into_owned());
    Trace { name, units: layers * experts, layer, requests }
}

/// xorshift64*: the same numbers on every machine.
struct Random(u64);

impl Random {
    fn unit(&mut self) -> f64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_F491_4F6C_DD1D) >> 11) as f64 / (1u64 << 53) as f64
    }

    fn shuffle(&mut self, values: &mut [usize]) {
        for at in (1..values.len()).rev() {
            values.swap(at, (self.unit() * (at + 1) as f64) as usize);
        }
    }
}
