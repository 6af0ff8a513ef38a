//! What a run moved, how fast, and what held it back.

use crate::Size;
use airllm_stream::Plan;
use airllm_stream::plan::{Gpu, Lane};
use serde::Serialize;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;
use xxhash_rust::xxh3::Xxh3;

/// The physics of a run: the line that every run ends with.
///
/// Rates are of the decoding alone, once every prompt has been read; where nothing was decoded, of
/// the whole run.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[non_exhaustive]
pub struct Physics {
    /// Tokens decoded a second, all sequences together.
    pub tokens_per_s: f64,
    /// Prompt tokens read a second.
    pub prompt_tokens_per_s: f64,
    /// What the plan expected of the decoding, with as many sequences as there were on average; `None` where nothing was decoded.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub expected_tokens_per_s: Option<f64>,
    /// What the plan expected of the reading of prompts; `None` where none was read, or where weights that stay were read
    /// meanwhile.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub expected_prompt_tokens_per_s: Option<f64>,
    /// Reading from disk.
    pub disk: LaneUse,
    /// Weights read from memory of the host to be multiplied by the processor.
    pub memory: LaneUse,
    /// Weights copied to a GPU; `None` where there is none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub copy: Option<LaneUse>,
    /// Weights read from a GPU's memory to be multiplied; `None` where there is none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub device: Option<LaneUse>,
    /// The lane that was busiest, measured against its limit.
    pub bottleneck: Lane,
    /// Floating-point operations a second that the device declared.
    pub flops_per_s: f64,
    /// Share of the experts' stripes that were in memory when a token needed them; `None` where the model has
    /// no experts.
    pub expert_hit_rate: Option<f64>,
    /// Share of the run in which the computation waited for weights.
    pub waiting: f64,
    /// Passes over the weights, those that read prompts included.
    pub passes: u64,
    /// xxh3_64 of all logits that tokens were chosen from, as little-endian f32, in order of passes
    /// and prompts: equal hashes mean bit-identical results.
    pub logits_hash: String,
}

/// How one lane was used.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct LaneUse {
    /// Bytes moved in the whole run.
    pub bytes: u64,
    /// Bytes moved a decoded token.
    pub bytes_per_token: f64,
    /// Bytes a second while the lane was measured.
    pub rate: f64,
    /// The lane's limit in bytes a second: what was measured before the run, or what the run reached, if
    /// that is more. `None` where the files are too small to measure one.
    pub limit: Option<f64>,
    /// `rate / limit`.
    pub share: Option<f64>,
}

impl fmt::Display for Physics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} tokens/s", Number(self.tokens_per_s))?;
        if let Some(expected) = self.expected_tokens_per_s {
            write!(f, " ({} expected)", Number(expected))?;
        }
        if self.prompt_tokens_per_s > 0.0 {
            write!(f, " | prompt {} tokens/s", Number(self.prompt_tokens_per_s))?;
            if let Some(expected) = self.expected_prompt_tokens_per_s {
                write!(f, " ({} expected)", Number(expected))?;
            }
        }
        // With a GPU the processor may have nothing to multiply.
        let memory = Some(self.memory).filter(|memory| memory.bytes > 0 || self.device.is_none());
        let lanes = [
            (Lane::Disk, Some(self.disk)),
            (Lane::Copy, self.copy),
            (Lane::Device, self.device),
            (Lane::Memory, memory),
        ];
        for (name, lane) in lanes.into_iter().filter_map(|(name, lane)| Some((name, lane?))) {
            let rate = Size(lane.rate as u64);
            write!(f, " | {name} {}/token at {rate}/s", Size(lane.bytes_per_token as u64))?;
            if let (Some(share), Some(limit)) = (lane.share, lane.limit) {
                write!(f, " ({:.0} % of {}/s)", share * 100.0, Size(limit as u64))?;
            }
        }
        if let Some(rate) = self.expert_hit_rate {
            write!(f, " | experts {:.0} % in memory", rate * 100.0)?;
        }
        write!(
            f,
            " | waited {:.0} % | bottleneck {} | logits {}",
            self.waiting * 100.0,
            self.bottleneck,
            self.logits_hash
        )
    }
}

/// Three significant digits, however small.
struct Number(f64);

impl fmt::Display for Number {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let decimals = match self.0 {
            n if n >= 100.0 || n <= 0.0 => 0,
            n => (2.0 - n.log10().floor()).clamp(0.0, 6.0) as usize,
        };
        write!(f, "{:.decimals$}", self.0)
    }
}

/// Measured limits of the lanes, in bytes a second.
#[derive(Debug, Clone)]
pub(crate) struct Limits {
    pub(crate) disk: Option<f64>,
    pub(crate) memory: f64,
    /// Those of a GPU.
    pub(crate) gpu: Option<Gpu>,
    /// Bytes that the processor multiplies in each pass beside a GPU.
    pub(crate) beside: u64,
    /// What was planned.
    pub(crate) plan: Arc<Plan>,
}

/// Counters at one moment.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Counters {
    pub(crate) read: u64,
    pub(crate) leased: u64,
    /// Bytes copied to a GPU.
    pub(crate) uploaded: u64,
    /// Whole passes.
    pub(crate) passes: u64,
    pub(crate) wait_ns: u64,
    pub(crate) flops: u64,
    /// Stripes of experts that were in memory when needed, and that were not.
    pub(crate) hits: u64,
    pub(crate) misses: u64,
}

/// No row of an embedding is longer.
const ROW: u64 = 64 << 10;

/// One stretch of a run: its time, tokens and what the lanes moved.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Stretch {
    pub(crate) time: Duration,
    pub(crate) tokens: u64,
    pub(crate) moved: Counters,
}

impl Stretch {
    pub(crate) fn add(&mut self, time: Duration, tokens: u64, before: Counters, after: Counters) {
        self.time += time;
        self.tokens += tokens;
        self.moved.read += after.read.saturating_sub(before.read);
        self.moved.leased += after.leased.saturating_sub(before.leased);
        self.moved.uploaded += after.uploaded.saturating_sub(before.uploaded);
        self.moved.passes += after.passes.saturating_sub(before.passes);
        self.moved.wait_ns += after.wait_ns.saturating_sub(before.wait_ns);
        self.moved.flops += after.flops.saturating_sub(before.flops);
        self.moved.hits += after.hits.saturating_sub(before.hits);
        self.moved.misses += after.misses.saturating_sub(before.misses);
    }
}

impl Physics {
    pub(crate) fn of(prompts: Stretch, decode: Stretch, limits: &Limits, hash: &LogitsHash) -> Self {
        let expected = |stretch: &Stretch| {
            // A first pass also reads what stays, which nobody asked the plan about. Rows of an embedding do not count.
            let each =
                limits.plan.streamed.max(limits.plan.prompt.streamed) + limits.plan.bytes_per_pass / 50;
            if stretch.moved.read > stretch.moved.passes * each + stretch.tokens * ROW {
                return None;
            }
            let tokens = stretch.tokens as f64 / stretch.moved.passes.max(1) as f64;
            let seconds = limits.plan.seconds_of(tokens);
            (tokens > 0.0 && seconds > 0.0).then(|| tokens / seconds)
        };
        let measured = if decode.tokens > 0 { decode } else { prompts };
        let seconds = measured.time.as_secs_f64();
        let per = |n: f64, d: f64| if d > 0.0 { n / d } else { 0.0 };
        let lane = |stretch: &dyn Fn(&Stretch) -> u64, limit: Option<f64>| {
            let rate = per(stretch(&measured) as f64, seconds);
            // A probe on a busy machine measures too little; a rate that was reached is possible.
            let limit = limit.map(|limit| limit.max(rate));
            LaneUse {
                bytes: stretch(&prompts) + stretch(&decode),
                bytes_per_token: per(stretch(&measured) as f64, measured.tokens as f64),
                rate,
                limit,
                share: limit.map(|limit| per(rate, limit)),
            }
        };
        let disk = lane(&|s| s.moved.read, limits.disk);
        // What is leased is multiplied by the processor, or by a GPU but for what it leaves to the processor.
        let beside = |s: &Stretch| s.moved.leased.min(s.moved.passes * limits.beside);
        let (memory, copy, device) = match limits.gpu {
            None => (lane(&|s| s.moved.leased, Some(limits.memory)), None, None),
            Some(gpu) => (
                lane(&beside, Some(limits.memory)),
                Some(lane(&|s| s.moved.uploaded, Some(gpu.upload))),
                Some(lane(&|s| s.moved.leased - beside(s), Some(gpu.memory))),
            ),
        };
        // In the order of preference where shares are equal.
        let lanes = [
            (Lane::Memory, Some(memory)),
            (Lane::Device, device),
            (Lane::Copy, copy),
            (Lane::Disk, Some(disk)),
        ];
        let shares = lanes.map(|(name, lane)| (name, lane.and_then(|lane| lane.share).unwrap_or(0.0)));
        let bottleneck = shares.into_iter().reduce(|most, lane| if lane.1 > most.1 { lane } else { most });
        Physics {
            tokens_per_s: per(decode.tokens as f64, decode.time.as_secs_f64()),
            prompt_tokens_per_s: per(prompts.tokens as f64, prompts.time.as_secs_f64()),
            expected_tokens_per_s: expected(&decode),
            expected_prompt_tokens_per_s: expected(&prompts),
            disk,
            memory,
            copy,
            device,
            bottleneck: bottleneck.map_or(Lane::Memory, |(name, _)| name),
            flops_per_s: per(measured.moved.flops as f64, seconds),
            expert_hit_rate: (measured.moved.hits + measured.moved.misses > 0).then(|| {
                per(measured.moved.hits as f64, (measured.moved.hits + measured.moved.misses) as f64)
            }),
            waiting: per(measured.moved.wait_ns as f64 / 1e9, seconds).min(1.0),
            passes: prompts.moved.passes + decode.moved.passes,
            logits_hash: hash.hex(),
        }
    }
}

/// Hash of all logits that were looked at.
#[derive(Clone, Default)]
pub(crate) struct LogitsHash(Xxh3);

impl LogitsHash {
    pub(crate) fn add(&mut self, logits: &[f32]) {
        // In blocks, so that the bytes of a large vocabulary are not copied as a whole.
        let mut bytes = [0u8; 4096];
        for part in logits.chunks(bytes.len() / 4) {
            for (to, logit) in bytes.chunks_exact_mut(4).zip(part) {
                to.copy_from_slice(&logit.to_le_bytes());
            }
            self.0.update(&bytes[..part.len() * 4]);
        }
    }

    pub(crate) fn hex(&self) -> String {
        format!("{:016x}", self.0.digest())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use airllm_stream::plan::UnitNeed;
    use airllm_stream::{Catalog, Hardware, Need, Request};

    #[test]
    fn hash_is_of_the_bytes() {
        let logits: Vec<f32> = (0..5000).map(|i| i as f32 * 0.37 - 9.0).collect();
        let bytes: Vec<u8> = logits.iter().flat_map(|l| l.to_le_bytes()).collect();
        let mut whole = LogitsHash::default();
        whole.add(&logits);
        let mut parts = LogitsHash::default();
        logits.chunks(77).for_each(|part| parts.add(part));
        assert_eq!(whole.hex(), format!("{:016x}", xxhash_rust::xxh3::xxh3_64(&bytes)));
        assert_eq!(whole.hex(), parts.hex());
    }

    /// All in memory: a token takes 0.2 s, and a pass of a hundred tokens of a prompt 4 s.
    fn plan() -> Plan {
        let mut need = Need::of(&Catalog::default(), 0);
        need.units.push(UnitNeed {
            name: "layer.0".to_owned(),
            bytes: 2000,
            per_pass: 2000,
            on_demand: None,
            beside: false,
            token_ns: 200_000_000,
            prompt_ns: 4_000_000_000,
        });
        need.prompt_tokens = 100;
        let hardware = Hardware { disk: 1000.0, memory: 20_000.0, gpu: None };
        airllm_stream::plan(&need, &hardware, &Request::default()).unwrap()
    }

    #[test]
    fn what_is_expected_depends_on_the_tokens_of_a_pass() {
        let stretch = |tokens, passes| {
            let after = Counters { passes, ..Counters::default() };
            let mut stretch = Stretch::default();
            stretch.add(Duration::from_secs(10), tokens, Counters::default(), after);
            stretch
        };
        let limits = Limits { disk: None, memory: 20_000.0, gpu: None, beside: 0, plan: Arc::new(plan()) };
        let of = |prompts, decode| Physics::of(prompts, decode, &limits, &LogitsHash::default());
        let physics = of(stretch(200, 2), stretch(12, 3));
        assert_eq!(physics.expected_prompt_tokens_per_s, Some(25.0));
        assert_eq!(physics.expected_tokens_per_s, Some(20.0), "up to five tokens take as long as one");
        let line = physics.to_string();
        let rates = "1.20 tokens/s (20.0 expected) | prompt 20.0 tokens/s (25.0 expected) | disk";
        assert!(line.starts_with(rates), "{line}");
        assert_eq!(of(Stretch::default(), stretch(40, 2)).expected_tokens_per_s, Some(25.0));
    }

    #[test]
    fn shares_and_bottleneck() {
        let second = Duration::from_secs(1);
        let mut decode = Stretch::default();
        let after = Counters {
            read: 500,
            leased: 4000,
            uploaded: 900,
            passes: 2,
            wait_ns: 250_000_000,
            flops: 8,
            hits: 3,
            misses: 1,
        };
        decode.add(second, 2, Counters::default(), after);
        let limits =
            || Limits { disk: Some(1000.0), memory: 20_000.0, gpu: None, beside: 0, plan: Arc::new(plan()) };
        let of = |limits: Limits| Physics::of(Stretch::default(), decode, &limits, &LogitsHash::default());
        let physics = of(limits());
        assert_eq!((physics.tokens_per_s, physics.expected_tokens_per_s), (2.0, Some(5.0)));
        assert_eq!(physics.expected_prompt_tokens_per_s, None);
        assert_eq!((physics.disk.share, physics.memory.share), (Some(0.5), Some(0.2)));
        assert_eq!((physics.disk.bytes_per_token, physics.waiting), (250.0, 0.25));
        assert_eq!((physics.bottleneck, physics.flops_per_s), (Lane::Disk, 8.0));
        assert_eq!(physics.expert_hit_rate, Some(0.75));
        let line = physics.to_string();
        assert!(line.contains("| experts 75 % in memory |"), "{line}");
        assert!(
            line.starts_with("2.00 tokens/s (5.00 expected) | disk 250 B/token at 500 B/s (50 % of 1 kB/s)"),
            "{line}"
        );
        assert!(!line.contains("copy"), "{line}");

        let gpu = Some(Gpu { upload: 1000.0, memory: 40_000.0 });
        let physics = of(Limits { gpu, beside: 500, ..limits() });
        let (copy, device) = (physics.copy.unwrap(), physics.device.unwrap());
        assert_eq!((copy.share, device.share, physics.memory.share), (Some(0.9), Some(0.075), Some(0.05)));
        assert_eq!(physics.bottleneck, Lane::Copy);
        let line = physics.to_string();
        let lanes =
            "| copy 450 B/token at 900 B/s (90 % of 1 kB/s) | GPU 1.5 kB/token at 3 kB/s (8 % of 40 kB/s) |";
        assert!(line.contains(lanes) && line.contains("| memory 500 B/token"), "{line}");
        let all_there = of(Limits { gpu, ..limits() }).to_string();
        assert!(!all_there.contains("| memory "), "{all_there}");
    }
}
