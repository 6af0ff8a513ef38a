//! What can be typed.

use airllm::Size;
use clap::{Args, Parser, Subcommand};
use std::path::PathBuf;

mod measure;
mod values;

pub use measure::{Bench, Plan, Probe, Sensitivity};
pub use values::{BitWidth, Ids, Width};

const EXIT_CODES: &str = "\
Exit codes:
  0    done
  1    the system or the network refused something
  2    the command line makes no sense
  3    it does not fit: memory budget, disk space or context
  4    bad input: a checkpoint, shard, prompt or file that is missing, damaged or not supported
  130  interrupted (Ctrl-C)

Environment: AIRLLM_HOME (where prepared shards are kept; else XDG_CACHE_HOME/airllm, else
~/.cache/airllm), HF_HOME, HF_HUB_CACHE, HF_ENDPOINT, HF_TOKEN, HF_HUB_OFFLINE.";

/// Runs language models larger than memory.
///
/// Weights stream from disk through a fixed memory budget. Standard output carries only the result;
/// progress and the closing line with speed and bottleneck go to standard error.
#[derive(Debug, Parser)]
#[command(name = "airllm", version, after_help = EXIT_CODES, propagate_version = true)]
pub struct Cli {
    #[command(flatten)]
    pub common: Common,
    #[command(subcommand)]
    pub command: Command,
}

/// What every command understands.
#[derive(Debug, Args)]
#[command(next_help_heading = "Common options")]
pub struct Common {
    /// A checkpoint folder, a prepared folder, a hub id (org/name), or "demo" for the model that ships
    /// with the program, which is also what is taken if nothing is said
    #[arg(short, long, global = true, value_name = "PATH|ID|demo")]
    pub model: Option<String>,
    /// The most memory of the machine to use, for example 600MB or 4GiB; all that is free if not given
    #[arg(long, global = true, value_name = "SIZE")]
    pub ram: Option<Size>,
    /// The most GPU memory to use, all that the driver takes of it for the program included, for example 4GB; what is
    /// free if not given. With it, that there is no GPU to use is an error
    #[arg(long, global = true, value_name = "SIZE")]
    pub vram: Option<Size>,
    /// What computes: the first GPU that can be used, else the processor, if not given
    #[arg(long, global = true, value_name = "auto|cpu|cuda|cuda:N")]
    pub device: Option<airllm::Device>,
    /// Threads that compute; one a core if not given
    #[arg(long, global = true, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1024))]
    pub threads: Option<u16>,
    /// Print one JSON object instead of text
    #[arg(long, global = true)]
    pub json: bool,
    /// Say more on standard error; twice for even more
    #[arg(short, long, global = true, action = clap::ArgAction::Count)]
    pub verbose: u8,
}

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Continue a prompt
    Generate(Generate),
    /// Talk with a chat model
    Chat(Chat),
    /// Write a checkpoint's shards: with fewer bits, or in the order of use
    Prepare(Prepare),
    /// Fold LoRA adapters into a checkpoint's weights
    Merge(Merge),
    /// Say what a checkpoint or a folder of shards holds
    Inspect(Inspect),
    /// Say where every layer will live, and how fast that will be
    Plan(Plan),
    /// List what there is to compute with, and why no GPU can be used where none can
    Devices,
    /// Measure what this machine can do, and keep it for plans
    ///
    /// Takes about 15 seconds: how fast disks are read and by which way, how fast memory is, weights of each number format
    /// are multiplied, and a GPU is reached. Kept as probe.toml in the program's folder; plans count with it as long as the
    /// machine is the same. Without it every start looks for itself, for a moment.
    Probe(Probe),
    /// Measure how fast a model reads prompts and decodes, beside what its plan expects
    Bench(Bench),
    /// Show how much the model suffers from fewer bits in each of its matrices
    ///
    /// Reads a calibration text once, in one pass over the weights, and measures for each matrix what rounding it does:
    /// to the products with its inputs at every width, to the output of its layer, and to the distributions at the end
    /// (mean KL divergence, in nats a token). The result is kept in the cache. Of prepared shards, what their formats
    /// were chosen by is shown.
    Sensitivity(Sensitivity),
    /// Write the logits of given tokens as safetensors
    Logits(Logits),
    /// Say how well a model predicts a text, and how far it is from a reference
    ///
    /// Perplexity with its standard error and bits per byte; with --reference also the KL divergence of the
    /// reference's distribution from the model's, and how often both find the same token the likeliest.
    ///
    /// Windows and counting are those of llama-perplexity: the text's tokens are cut into windows of --context
    /// tokens, what is left over is not used, the token for the beginning (if the tokenizer adds one) takes the
    /// place of the first token of each window, and of the predictions only those of the second half of each
    /// window count. Perplexity is exp of their mean negative log-likelihood; its standard error comes from the mean
    /// of squares. A text of less than two windows is refused.
    ///
    /// With a reference both models run in turn, the model in up to half of --ram, the reference in what the model
    /// leaves; only logits of one pass are held.
    Eval(Eval),
    /// Turn text into token ids, or ids into text
    Tokenize(Tokenize),
    /// List or clean the prepared shards
    Cache(Cache),
}

/// Writes the checkpoint anew, in its own layout and precision; with --bits as shards.
#[derive(Debug, Args)]
pub struct Merge {
    /// Folder of a LoRA adapter; may be given several times
    #[arg(long, value_name = "DIR", required = true)]
    pub adapter: Vec<PathBuf>,
    /// New folder for the result
    #[arg(long, value_name = "DIR")]
    pub out: PathBuf,
    /// Write shards instead, with so many bits a weight; 16 is the checkpoint's own precision
    #[arg(long, value_name = "16|8|6|5|4|3|2|nf4")]
    pub bits: Option<BitWidth>,
    /// Never use the network
    #[arg(long)]
    pub offline: bool,
    /// Branch, tag or commit of a hub id
    #[arg(long, value_name = "REV")]
    pub revision: Option<String>,
}

/// How a model is stored and fetched.
#[derive(Debug, Args, Clone)]
#[command(next_help_heading = "Model options")]
pub struct Weights {
    /// Bits a weight: 16 keeps the checkpoint's own precision and runs from its own files; 8, 6, 5, 4, 3
    /// and 2 make it smaller and faster, all matrices alike, and prepare it once; nf4 is QLoRA's format of four
    /// bits. A number with a point, such as 3.7 or 4.0, is an average: each matrix gets the bits that the model
    /// needs there
    #[arg(long, value_name = "16|8|6|5|4|3|2|nf4|N.N")]
    pub bits: Option<Width>,
    /// As --bits with a point, for shards of this size in all, such as 20GB
    #[arg(long, value_name = "SIZE", conflicts_with = "bits")]
    pub size: Option<Size>,
    /// As --bits with a point, for the fewest bits with this expected mean KL divergence from the checkpoint,
    /// in nats a token, such as 0.01
    #[arg(long, value_name = "KL", conflicts_with_all = ["bits", "size"])]
    pub quality: Option<f64>,
    /// Round by what matrices are multiplied with while this text is read, which takes longer and is better: a
    /// file, or "built-in", which averages take if nothing is said
    #[arg(long, value_name = "FILE|built-in")]
    pub calibration: Option<PathBuf>,
    /// Take no more than so many tokens of the calibration text
    #[arg(long, value_name = "N", default_value_t = 32_768)]
    pub calibration_tokens: u32,
    /// Folders for the model's shards instead of one in the cache. Over several, on several drives, the shards are spread
    /// when they are written, in shares that are measured then; all of them are named to run the model, which need
    /// not be named itself then
    #[arg(long, value_name = "DIR1,DIR2", value_delimiter = ',')]
    pub shards: Vec<PathBuf>,
    /// Never use the network
    #[arg(long)]
    pub offline: bool,
    /// Branch, tag or commit of a hub id
    #[arg(long, value_name = "REV")]
    pub revision: Option<String>,
}

/// What is added to the weights while they are used.
#[derive(Debug, Args, Clone)]
#[command(next_help_heading = "Model options")]
pub struct Adapters {
    /// Folder of a LoRA adapter to apply, the weights staying as they are; may be given several times
    #[arg(long, value_name = "DIR")]
    pub adapter: Vec<PathBuf>,
}

/// How keys and values are kept.
#[derive(Debug, Args, Clone)]
#[command(next_help_heading = "Model options")]
pub struct KvCache {
    /// How the key/value cache is stored: f32, as it was computed; f16, half of that; q8, eight bits and a scale for
    /// each 64 numbers of a head, about half of f16 for heads of 64 or 128 numbers; or q4, four bits and a scale for each
    /// 32 numbers, a seventh of f32, on the processor only. What is not f32 rounds: on the demo model q8 costs 0.00006 nats
    /// a token and q4 0.012; `eval --kv` measures it
    #[arg(long, value_name = "f32|f16|q8|q4", default_value_t)]
    pub kv: airllm::KvFormat,
}

/// Everything that a command which runs a model lets one choose about it.
#[derive(Debug, Args, Clone)]
pub struct Running {
    #[command(flatten)]
    pub weights: Weights,
    #[command(flatten)]
    pub adapters: Adapters,
    #[command(flatten)]
    pub cache: KvCache,
    #[command(flatten)]
    pub tuning: Tuning,
}

/// The shape of the stream. The results are the same whatever it is.
#[derive(Debug, Args, Clone)]
#[command(next_help_heading = "Tuning (changes speed, never results)")]
pub struct Tuning {
    /// Slots of the ring
    #[arg(long, value_name = "N")]
    pub slots: Option<usize>,
    /// Bytes of a slot, and so of a read
    #[arg(long, value_name = "SIZE")]
    pub stripe: Option<Size>,
    /// Threads that read
    #[arg(long, value_name = "N")]
    pub readers: Option<usize>,
    /// How files are read: past the page cache; so, with several requests in flight from one thread (io_uring); or through
    /// the page cache, which is emptied behind. `auto` takes what is faster on these files; what the system refuses falls
    /// back to what it does not
    #[arg(long, value_name = "auto|direct|uring|buffered", default_value_t)]
    pub read: airllm::ReadMethod,
    /// Tokens computed in one pass while a prompt is read
    #[arg(long, value_name = "N")]
    pub batch_tokens: Option<usize>,
    /// Layers in memory that the processor computes while others are copied to a GPU: a number, or `auto` for as many as
    /// make a token fastest. Processor and GPU round differently, so this shows in the last bits of results
    #[arg(long, value_name = "N|auto", default_value = "0", value_parser = host_layers)]
    pub host_layers: HostLayers,
}

/// Layers that are computed beside a GPU; `None` for as many as the plan chooses.
#[derive(Debug, Clone, Copy)]
pub struct HostLayers(pub Option<usize>);

fn host_layers(text: &str) -> Result<HostLayers, String> {
    match text {
        "auto" => Ok(HostLayers(None)),
        number => number
            .parse()
            .map(|layers| HostLayers(Some(layers)))
            .map_err(|_| format!("{number:?} is neither a number of layers nor `auto`")),
    }
}

#[derive(Debug, Args)]
pub struct Generate {
    /// The prompt; given several times, the prompts are continued side by side. Read from standard
    /// input if there is none
    #[arg(value_name = "PROMPT")]
    pub prompts: Vec<String>,
    /// Read the prompt from a file; "-" is standard input
    #[arg(short, long, value_name = "FILE", conflicts_with_all = ["prompts", "input_ids"])]
    pub file: Option<PathBuf>,
    /// Continue all prompts of a file, as many side by side as are fastest: JSON lines {"prompt": TEXT},
    /// {"messages": [{"role", "content"}, ...]} for the model's chat format, or {"input_ids": [...]}, with "id",
    /// "max_new_tokens", "temperature", "seed" and "stop" where a line has its own. Each answer is a JSON line, written when
    /// it ends: "id" (the line's number where it has none), "text", "tokens", "prompt_tokens", "finish_reason". All
    /// lines are checked before anything is begun. "-" is standard input
    #[arg(
        id = "prompts_file", long = "prompts", value_name = "FILE",
        conflicts_with_all = ["prompts", "input_ids", "file"]
    )]
    pub prompts_file: Option<PathBuf>,
    /// With --prompts: add the answers to this file. Those that are there already are kept and not computed again, so that
    /// the same command goes on where it was interrupted
    #[arg(short, long, value_name = "FILE", requires = "prompts_file")]
    pub out: Option<PathBuf>,
    /// With --prompts: the most sequences side by side
    #[arg(long, value_name = "N", requires = "prompts_file")]
    pub active: Option<usize>,
    /// The prompt as token ids, to which nothing is added; once for each prompt
    #[arg(long, value_name = "1,2,3", conflicts_with = "prompts")]
    pub input_ids: Vec<Ids>,
    /// Put each prompt into the model's chat format, as the user's message
    #[arg(long, conflicts_with = "input_ids")]
    pub chat: bool,
    #[command(flatten)]
    pub sampling: Sampling,
    /// Tokens of context to make room for; what prompt and answer need if not given
    #[arg(long, value_name = "TOKENS")]
    pub context: Option<usize>,
    /// Write what every lane did and when, for chrome://tracing or Perfetto
    #[arg(long, value_name = "FILE")]
    pub trace: Option<PathBuf>,
    /// Draw what every lane did and when, on standard error
    #[arg(long)]
    pub timeline: bool,
    #[command(flatten)]
    pub running: Running,
}

/// Lines are messages; one that ends in \\ goes on in the next, and """ begins and ends one of many lines.
/// /help lists the commands. Ctrl-C stops an answer, and leaves at the prompt, as does Ctrl-D.
#[derive(Debug, Args)]
pub struct Chat {
    /// What the model should be or know, said before the conversation
    #[arg(long, value_name = "TEXT")]
    pub system: Option<String>,
    /// Go on with a conversation that /save has written
    #[arg(long, value_name = "FILE")]
    pub load: Option<PathBuf>,
    #[command(flatten)]
    pub sampling: Sampling,
    /// Tokens of context to make room for; the model's, but no more than 4096, if not given
    #[arg(long, value_name = "TOKENS")]
    pub context: Option<usize>,
    #[command(flatten)]
    pub running: Running,
}

#[derive(Debug, Args)]
#[command(next_help_heading = "Sampling")]
pub struct Sampling {
    /// The most tokens to add; 128 if not given, 1024 in a chat
    #[arg(short = 'n', long, value_name = "N")]
    pub max_new_tokens: Option<usize>,
    /// 0 takes the most likely token each time; 1 draws as the model says; above, more freely
    #[arg(short, long, value_name = "T", default_value_t = 0.0)]
    pub temperature: f32,
    /// Draw from the N best tokens only
    #[arg(long, value_name = "N")]
    pub top_k: Option<usize>,
    /// Draw from the best tokens that together hold this probability
    #[arg(long, value_name = "P")]
    pub top_p: Option<f32>,
    /// Draw from tokens at least this likely, relative to the best
    #[arg(long, value_name = "P")]
    pub min_p: Option<f32>,
    /// Make tokens that are already there less likely; 1 is off
    #[arg(long, value_name = "R")]
    pub repetition_penalty: Option<f32>,
    /// Draw the same tokens every time
    #[arg(long, value_name = "N")]
    pub seed: Option<u64>,
    /// End the answer before this text; may be given several times
    #[arg(long, value_name = "TEXT")]
    pub stop: Vec<String>,
    /// Go on after an end-of-sequence token
    #[arg(long)]
    pub ignore_eos: bool,
}

#[derive(Debug, Args)]
pub struct Prepare {
    /// The model, instead of --model
    #[arg(value_name = "MODEL")]
    pub target: Option<String>,
    /// Where to, as --shards; the cache if not given
    #[arg(short, long, value_name = "DIR", conflicts_with = "shards")]
    pub out: Option<PathBuf>,
    /// Delete the checkpoint's weights when the shards are written and verified. Without --out the shards
    /// then take their place in the checkpoint's own folder
    #[arg(long)]
    pub delete_original: bool,
    #[command(flatten)]
    pub weights: Weights,
}

#[derive(Debug, Args)]
pub struct Inspect {
    /// The model, instead of --model
    #[arg(value_name = "MODEL")]
    pub target: Option<String>,
    /// Read everything and check the checksums
    #[arg(long)]
    pub verify: bool,
    /// List every tensor
    #[arg(long)]
    pub tensors: bool,
}

#[derive(Debug, Args)]
pub struct Logits {
    /// Token ids, to which nothing is added
    #[arg(long, value_name = "1,2,3", required = true)]
    pub input_ids: Ids,
    /// The file to write: `logits` [n, vocab] f32
    #[arg(short, long, value_name = "FILE")]
    pub out: PathBuf,
    /// Also write `hidden.I` [n, hidden] f32: the embedding (0) and every layer's output
    #[arg(long)]
    pub hidden: bool,
    #[command(flatten)]
    pub running: Running,
}

#[derive(Debug, Args)]
pub struct Eval {
    /// The text to predict; "-" is standard input
    #[arg(short = 'f', long, value_name = "FILE")]
    pub text: PathBuf,
    /// A model to compare with, named as for --model, with the same vocabulary and at its own precision
    #[arg(long, value_name = "PATH|ID|demo")]
    pub reference: Option<String>,
    /// Tokens of a window
    #[arg(long, value_name = "N", default_value_t = 512)]
    pub context: usize,
    /// Read no more than so many windows
    #[arg(long, value_name = "N")]
    pub chunks: Option<usize>,
    #[command(flatten)]
    pub running: Running,
}

#[derive(Debug, Args)]
pub struct Tokenize {
    /// The text; standard input if there is none
    #[arg(value_name = "TEXT")]
    pub text: Option<String>,
    /// Turn these ids into text
    #[arg(long, value_name = "1,2,3", conflicts_with = "text")]
    pub ids: Option<Ids>,
    /// Read JSON lines, {"text": …} or {"ids": […]}, from standard input and answer each with both
    #[arg(long, conflicts_with_all = ["text", "ids"])]
    pub jsonl: bool,
    /// Render a conversation, a JSON list of messages ("-" is standard input), in the model's chat format:
    /// the prompt and its ids
    #[arg(long, value_name = "FILE", conflicts_with_all = ["text", "ids", "jsonl", "compare"])]
    pub chat: Option<PathBuf>,
    /// Compare the tokenizers of several models, named as for --model, on the text (or a sample of
    /// Chinese, English and code): tokens a character, characters a second
    #[arg(long, value_name = "MODEL", num_args = 1.., conflicts_with_all = ["ids", "jsonl"])]
    pub compare: Vec<String>,
    /// Read the text from a file; "-" is standard input
    #[arg(short, long, value_name = "FILE", conflicts_with_all = ["text", "ids", "jsonl", "chat"])]
    pub file: Option<PathBuf>,
    /// Add no special tokens to a text
    #[arg(long)]
    pub no_special: bool,
    /// Leave special tokens out of the text of ids
    #[arg(long)]
    pub skip_special: bool,
}

#[derive(Debug, Args)]
pub struct Cache {
    #[command(subcommand)]
    pub action: CacheAction,
}

#[derive(Debug, Subcommand)]
pub enum CacheAction {
    /// List the prepared shards
    List,
    /// Remove what interrupted runs left; or the entries named; or all
    Clean {
        /// Entries to remove, as listed
        #[arg(value_name = "KEY")]
        keys: Vec<String>,
        /// Remove every entry
        #[arg(long, conflicts_with = "keys")]
        all: bool,
    },
    /// Print the cache folder
    Dir,
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn definitions_are_sound() {
        Cli::command().debug_assert();
    }

    #[test]
    fn common_options_go_anywhere() {
        for line in ["airllm --ram 1GB generate x", "airllm generate x --ram 1GB"] {
            let cli = Cli::try_parse_from(line.split(' ')).unwrap();
            assert_eq!(cli.common.ram, Some(Size(1_000_000_000)));
            assert_eq!(cli.common.model, None);
            assert_eq!((cli.common.vram, cli.common.device), (None, None));
        }
    }

    #[test]
    fn devices_and_their_memory() {
        use airllm::Device;
        let parse = |line: &str| Cli::try_parse_from(line.split(' '));
        let common = parse("airllm plan --device cuda:1 --vram 4GB").unwrap().common;
        assert_eq!((common.device, common.vram), (Some(Device::Cuda(1)), Some(Size(4_000_000_000))));
        let error = parse("airllm plan --device gpu").unwrap_err().to_string();
        assert!(error.contains("expected auto, cpu, cuda or cuda:N"), "{error}");
    }
}
