//! What a run will take: where every unit lives, and how fast that will be.

use crate::company::{Company, Try};
use crate::device::DeviceReport;
use crate::eval::Shape;
use crate::hardware::ProductRate;
use crate::{Error, Result};
use airllm_format::Bits;
use airllm_model::{Config, KvFormat, LowRank, activation_bytes, adapter_bytes, kv_bytes, logits_bytes};
use airllm_stream::plan::{Memory, Refusal, Share, UnitNeed, plan};
use airllm_stream::{Catalog, Hardware, Need, Plan, Request, Tensor};
use serde::Serialize;
use std::sync::Arc;

#[cfg(test)]
mod tests;

/// A plan and everything it was made from.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[non_exhaustive]
pub struct Forecast {
    /// What computes, and why it is no GPU where it is none.
    pub device: DeviceReport,
    /// The budget of host memory, in bytes; `None` where all of the model fits what is free.
    pub budget: Option<u64>,
    /// The budget of a GPU's memory, in bytes.
    pub vram_budget: Option<u64>,
    /// Where everything lives.
    pub plan: Plan,
    /// The units, in the order of the plan.
    pub units: Vec<UnitNeed>,
    /// The rates that the plan counts with.
    pub hardware: Hardware,
    /// False where the files are too small to be timed; the rate of the disk is a stand-in then.
    pub disk_measured: bool,
    /// Tokens that the key/value cache holds.
    pub context: usize,
    /// How the key/value cache is stored.
    #[serde(serialize_with = "named")]
    pub kv: KvFormat,
    /// Bytes of the key/value cache; they are part of what a pass needs besides weights and ring.
    pub kv_bytes: u64,
    /// Sequences that may be under way at once: so many rows of logits there is room for.
    pub sequences: usize,
    /// The most tokens of a pass.
    pub batch_tokens: usize,
    /// Bytes of host memory besides weights and ring.
    pub fixed: u64,
    /// Bytes of a GPU's memory besides weights and ring.
    pub device_fixed: u64,
    /// Bytes that a token needs of weights that are repacked from another program's layout whenever they are
    /// read. The plan's times do not know of this work.
    pub repacked: u64,
    /// What storing fewer bits would bring, fastest first; empty where nothing would.
    pub fewer_bits: Vec<Alternative>,
}

fn named<S: serde::Serializer>(format: &KvFormat, to: S) -> Result<S::Ok, S::Error> {
    to.serialize_str(format.name())
}

/// The same model in fewer bits.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[non_exhaustive]
pub struct Alternative {
    /// How matrices would be stored.
    pub bits: Bits,
    /// Bytes of weights that every pass would multiply.
    pub bytes_per_pass: u64,
    /// Bytes that every pass would read from disk.
    pub streamed: u64,
    /// Expected seconds of a pass with one token.
    pub seconds_per_token: f64,
    /// How many times faster that is than the plan.
    pub speedup: f64,
}

impl Forecast {
    /// Expected tokens a second of a single sequence.
    pub fn tokens_per_s(&self) -> f64 {
        if self.plan.seconds_per_token > 0.0 { 1.0 / self.plan.seconds_per_token } else { 0.0 }
    }

    /// Expected tokens of a prompt a second: one pass of as many as go at once.
    pub fn prompt_tokens_per_s(&self) -> f64 {
        let prompt = &self.plan.prompt;
        if prompt.seconds > 0.0 { prompt.tokens as f64 / prompt.seconds } else { 0.0 }
    }

    /// Bytes of a GPU's memory that the plan takes beside the driver's, in whole pages of 2 MiB, as drivers give them.
    pub(crate) fn device_bytes(&self) -> u64 {
        const PAGE: u64 = 2 << 20;
        let of = |all: u64| all.saturating_sub(self.device.overhead);
        let most = self.vram_budget.map_or(u64::MAX, of) / PAGE * PAGE;
        of(self.plan.vram).next_multiple_of(PAGE).min(most)
    }

    /// Bytes that the processor multiplies in each pass beside a GPU.
    pub(crate) fn beside(&self) -> u64 {
        let units = self.units.iter().zip(&self.plan.on_host);
        units.filter(|(_, on_host)| **on_host).map(|(unit, _)| unit.per_pass).sum()
    }
}

/// What to make room for.
#[derive(Debug, Clone)]
pub(crate) struct Want {
    pub(crate) request: Request,
    /// Tokens of key/value cache.
    pub(crate) cache_tokens: usize,
    /// Whether `cache_tokens` is only a wish, to be lowered where the budget is small.
    pub(crate) cache_may_shrink: bool,
    /// How the cache is stored.
    pub(crate) kv: KvFormat,
    /// Tokens a pass, if the user has said so.
    pub(crate) batch_tokens: Option<usize>,
    /// Sequences side by side, so rows of logits that a pass returns.
    pub(crate) sequences: usize,
    /// Tokens that a pass has use for, where that is known.
    pub(crate) pass_tokens: Option<usize>,
    /// Prompts, for which cache, sequences and tokens a pass are chosen.
    pub(crate) company: Option<Company>,
    /// Bytes that the weights leave of what is free of the host's memory, if the system says so.
    pub(crate) free: Option<u64>,
    /// Windows of a text to read, which say how much cache and how many rows of logits a pass needs.
    pub(crate) windows: Option<Shape>,
    /// Additions to the weights.
    pub(crate) additions: Arc<[LowRank]>,
    /// Rates of products by format. A format that has none is as fast as memory is read.
    pub(crate) products: Arc<[ProductRate]>,
    /// Bytes that whoever makes the weights needs beside them.
    pub(crate) making: u64,
    /// What computes.
    pub(crate) device: DeviceReport,
}

/// Tokens a pass where memory is plenty: enough that reading a prompt is bound by arithmetic.
pub(crate) const BATCH_TOKENS: usize = 512;

/// A cache is not shrunk below this on its own.
const LEAST_CACHE: usize = 256;

/// Bytes of the process besides what is planned one by one: small buffers, the vocabulary, threads.
const OVERHEAD: u64 = 4 << 20;

/// Page-locked bytes that a GPU's driver is given besides the ring: for what is written, and for logits on their way.
const PAGE_LOCKED: u64 = 37 << 20;

/// Bytes of a GPU's memory besides what is planned one by one: small buffers, and what is left over at the end of the
/// chunks that its memory is got in.
const DEVICE_OVERHEAD: u64 = 8 << 20;

/// Plans inside a budget: as many tokens a pass and as much cache as an eighth and a quarter of the
/// budget allow, fewer where nothing else fits. Of prompts that are known, as many side by side and as many tokens a pass
/// as make all of them end first.
pub(crate) fn forecast(
    config: &Config,
    catalog: &Catalog,
    hardware: Hardware,
    want: &Want,
) -> Result<Forecast> {
    let inputs = Inputs { config, catalog, hardware, want };
    match &want.company {
        None => inputs.first(),
        Some(company) => company.best(|attempt| inputs.company(attempt)),
    }
}

/// What is planned with.
struct Inputs<'a> {
    config: &'a Config,
    catalog: &'a Catalog,
    hardware: Hardware,
    want: &'a Want,
}

impl Inputs<'_> {
    /// Budgets of host memory, and of the memory that activations and cache are in; `otherwise` where there is none.
    fn budgets(&self, otherwise: u64) -> (u64, u64) {
        let Request { ram, vram, .. } = self.want.request;
        let own = if self.hardware.gpu.is_some() { vram } else { ram.or(Some(otherwise)) };
        (ram.unwrap_or(otherwise), own.unwrap_or(u64::MAX))
    }

    /// The plan with most cache and most tokens a pass, of those that are possible.
    fn first(&self) -> Result<Forecast> {
        let want = self.want;
        let budgets = self.budgets(u64::MAX);
        let mut caches = vec![want.cache_tokens];
        while want.cache_may_shrink && caches[caches.len() - 1] / 2 >= LEAST_CACHE {
            caches.push(caches[caches.len() - 1] / 2);
        }
        let last = caches.len() - 1;
        let cache = caches
            .iter()
            .position(|&tokens| kv_bytes(self.config, want.kv, tokens) as u64 <= budgets.1 / 4)
            .unwrap_or(last);
        let mut refusal = None;
        let sizes = caches[cache..].iter().flat_map(|&context| {
            let batches = batches(want, self.config, budgets, 8).into_iter();
            batches.flat_map(move |batch| match want.windows {
                Some(windows) => windows.caches(batch).map(|context| (context, batch)).to_vec(),
                None => vec![(context, batch)],
            })
        });
        for (context, batch_tokens) in sizes {
            match self.plan(context, batch_tokens) {
                Ok(forecast) => return Ok(forecast),
                Err(error) => refusal = Some(error),
            }
        }
        Err(refusal.unwrap_or_else(|| self.refused(0, 0)))
    }

    /// Plans for so many sequences, the most tokens a pass first.
    fn company(&self, attempt: Try) -> Result<Vec<Forecast>> {
        let cache = kv_bytes(self.config, self.want.kv, attempt.cache) as u64;
        let budgets = self.budgets(self.want.free.unwrap_or(u64::MAX));
        if attempt.sequences > 1 && cache > budgets.1 / 2 {
            return Err(self.refused(attempt.cache, cache));
        }
        let want = Want {
            cache_tokens: attempt.cache,
            sequences: attempt.sequences,
            pass_tokens: Some(attempt.tokens),
            ..self.want.clone()
        };
        let inputs = Inputs { want: &want, ..*self };
        let (mut plans, mut refusal) = (Vec::new(), None);
        // What more of them cost is seen in the plans.
        for batch in batches(&want, self.config, budgets, 2) {
            if batch < attempt.sequences && !plans.is_empty() {
                break;
            }
            match inputs.plan(attempt.cache, batch) {
                // Where nothing flows, fewer and longer passes bring nothing.
                Ok(plan) if plan.plan.streamed + plan.plan.uploaded == 0 && batch <= BATCH_TOKENS => {
                    return Ok(vec![plan]);
                }
                Ok(plan) => plans.push(plan),
                Err(error) => refusal = Some(error),
            }
        }
        if plans.is_empty() {
            Err(refusal.unwrap_or_else(|| self.refused(attempt.cache, cache)))
        } else {
            Ok(plans)
        }
    }

    /// A refusal where no plan has been tried.
    fn refused(&self, context: usize, need: u64) -> Error {
        let (on_gpu, have) = (self.hardware.gpu.is_some(), self.budgets(u64::MAX).1);
        let memory = if on_gpu { Memory::Vram } else { Memory::Ram };
        Error::Budget { memory, on_gpu, need, have, fixed: need, ring: 0, context }
    }

    /// The plan with so many tokens of cache, and so many in a pass.
    fn plan(&self, context: usize, batch_tokens: usize) -> Result<Forecast> {
        let Inputs { config, catalog, hardware, want } = *self;
        let gpu = hardware.gpu.is_some();
        let share = config
            .moe
            .as_ref()
            .map_or(Share::WHOLE, |moe| Share { used: moe.top_k as u32, of: moe.experts as u32 });
        let (host, device) = fixed_bytes(config, catalog, context, batch_tokens, want);
        let (fixed, device_fixed) = match gpu {
            true => (host + PAGE_LOCKED, device + DEVICE_OVERHEAD + want.device.overhead),
            false => (host.saturating_add(device), 0),
        };
        let is_layer = |unit: usize| catalog.units[unit].name.starts_with("layer.");
        let is_head = |unit: usize| catalog.units[unit].name == "head" || catalog.units[unit].name == "embed";
        let tokens = batch_tokens as f64;
        let times = |unit: usize, tensor: &Tensor| {
            let rate = want.products.iter().find(|rate| rate.format == tensor.format);
            let weights = (tensor.rows * tensor.cols) as f64;
            // Logits are made of a prompt's last token alone.
            let tokens = if is_head(unit) { 1.0 } else { tokens };
            rate.map_or((0.0, 0.0), |rate| rate.ns(tensor.bytes() as f64, weights, tokens))
        };
        let need = Need::of(catalog, fixed)
            .with_shares(|_| share)
            .with_processor(catalog, batch_tokens as u64, times)
            .with_device(device_fixed, is_layer);
        match plan(&need, &hardware, &want.request) {
            Ok(plan) => Ok(Forecast {
                device: want.device.clone(),
                budget: want.request.ram,
                vram_budget: want.request.vram.filter(|_| gpu),
                plan,
                units: need.units,
                hardware,
                disk_measured: true,
                context,
                kv: want.kv,
                kv_bytes: kv_bytes(config, want.kv, context) as u64,
                sequences: want.sequences,
                batch_tokens,
                fixed,
                device_fixed,
                repacked: 0,
                fewer_bits: Vec::new(),
            }),
            Err(Refusal { memory, need, have, fixed, ring }) => {
                Err(Error::Budget { memory, on_gpu: gpu, need, have, fixed, ring, context })
            }
        }
    }
}

/// Tokens a pass to try, the most first, for budgets of host memory and of the memory that activations are in, of which
/// they may have one of `parts` parts.
fn batches(want: &Want, config: &Config, (ram, budget): (u64, u64), parts: u64) -> Vec<usize> {
    if let Some(asked) = want.batch_tokens {
        return vec![asked.max(1)];
    }
    let first = want.pass_tokens.unwrap_or(BATCH_TOKENS).max(1);
    let halves: Vec<usize> = std::iter::successors(Some(first), |n| (*n > 1).then_some(n / 2)).collect();
    let fits = |tokens: &usize| {
        let logits = want.windows.map_or(0, |windows| logits_bytes(config, windows.rows(*tokens)));
        activation_bytes(config, *tokens) as u64 <= budget / parts && logits as u64 <= ram / parts
    };
    let first = halves.iter().position(fits).unwrap_or(halves.len() - 1);
    halves[first..].to_vec()
}

/// Bytes besides weights and ring: on the host logits, rows of the embedding on their way, rows that are made; and
/// where it is computed cache, activations, what adapters need, and such rows again.
fn fixed_bytes(config: &Config, catalog: &Catalog, cache: usize, batch: usize, want: &Want) -> (u64, u64) {
    let logit_rows = want.windows.map_or(want.sequences, |windows| windows.rows(batch));
    let row = catalog.find("embed", "embed").and_then(|id| catalog.get(id)).map_or(0, |t| t.row_bytes());
    let rows = (row * batch) as u64;
    let host = (logits_bytes(config, logit_rows) as u64)
        .saturating_add(want.making)
        .saturating_add(rows)
        .saturating_add(OVERHEAD);
    let device = (kv_bytes(config, want.kv, cache) as u64)
        .saturating_add(activation_bytes(config, batch) as u64)
        .saturating_add(adapter_bytes(&want.additions, batch) as u64)
        // The buffer for rows of the embedding grows, and may leave a gap as large as it was; kernels have memory of their own.
        .saturating_add(if want.device.is_gpu() { 2 * rows + scratch(config, batch) } else { 0 });
    (host, device)
}

/// Bytes of a GPU's memory that kernels take for themselves.
fn scratch(config: &Config, batch: usize) -> u64 {
    let moe = config.moe.as_ref().map_or(0, |moe| moe.inner.max(moe.shared));
    let latent = config.latent.map_or(0, |latent| latent.kv.max(latent.query.unwrap_or(0)));
    let attended = config.query_dim().max(config.heads * config.value_dim);
    let widest = config.hidden.max(config.inner).max(attended).max(moe).max(latent);
    airllm_kernels::scratch_bytes(batch, widest) as u64
}

/// Bytes of weights that a pass makes anew: those of units that do not stay, in files from number `first` on.
pub(crate) fn repacked(forecast: &Forecast, catalog: &Catalog, first: usize) -> u64 {
    let stays = forecast.plan.pinned.iter().zip(&forecast.plan.resident);
    let units = catalog.units.iter().zip(&forecast.units).zip(stays);
    units
        .filter(|(_, (pinned, resident))| !**pinned && !**resident)
        .map(|((unit, need), _)| {
            let made = unit.tensors.iter().filter(|t| t.file >= first && t.format.is_foreign());
            let bytes = made.map(|tensor| tensor.bytes() as u64).sum::<u64>();
            // Of an expert what a token is expected to use.
            if need.bytes == 0 {
                0
            } else {
                (u128::from(bytes) * u128::from(need.per_pass) / u128::from(need.bytes)) as u64
            }
        })
        .sum()
}

/// What fewer bits would bring: `catalogs` holds the same model by bits.
pub(crate) fn alternatives(
    forecast: &Forecast,
    config: &Config,
    catalogs: Vec<(Bits, Catalog)>,
    want: &Want,
) -> Vec<Alternative> {
    let now = forecast.plan.seconds_per_token;
    let mut list: Vec<Alternative> = catalogs
        .into_iter()
        .filter_map(|(bits, catalog)| {
            let plan = self::forecast(config, &catalog, forecast.hardware, want).ok()?.plan;
            Some(Alternative {
                bits,
                bytes_per_pass: plan.bytes_per_pass,
                streamed: plan.streamed,
                seconds_per_token: plan.seconds_per_token,
                speedup: now / plan.seconds_per_token,
            })
        })
        // A hundredth is less than rates vary.
        .filter(|other| other.speedup > 1.01)
        .collect();
    list.sort_by(|a, b| a.seconds_per_token.total_cmp(&b.seconds_per_token));
    list
}
