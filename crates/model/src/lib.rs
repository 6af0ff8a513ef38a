//! Transformer architectures as data, and the one forward that runs them.
//!
//! - An [`arch::Arch`] is a constant: which tensors a family has, what they are called in a checkpoint,
//!   their shapes by named dimensions, when they exist, how narrow they may be stored.
//! - A [`Config`] is a validated `config.json`. It lists the tensors ([`Config::units`]) and the order in
//!   which a pass uses them ([`Config::pass`]).
//! - [`bind()`] finds those tensors in a catalog of what there is to stream.
//! - A [`Model`] runs tokens of any number of [`Sequence`]s through the layers in one pass, while the
//!   weights flow past. It sees of a device only [`Ops`](airllm_kernels::Ops) and never opens a file.
//!
//! - A [`Walk`] runs the same layers one at a time, over hidden states that its caller keeps, and shows what every
//!   matrix is multiplied with.
//!
//! What is absent: a forward per family, and padding. A new architecture adds data.
//!
//! ```
//! use airllm_model::{Config, KvFormat};
//!
//! let json = serde_json::json!({
//!     "architectures": ["LlamaForCausalLM"],
//!     "hidden_size": 64, "intermediate_size": 176, "vocab_size": 320,
//!     "num_hidden_layers": 3, "num_attention_heads": 4,
//!     "rope_scaling": { "type": "linear", "factor": 4.0 },
//! });
//! let config = Config::parse(&json)?;
//! assert_eq!(config.kv_heads, 4);
//!
//! let units = config.units();
//! let q = &units[1].tensors[1];
//! assert_eq!((units[1].name.as_str(), q.name.as_str()), ("layer.0", "q"));
//! assert_eq!(q.hf, "model.layers.0.self_attn.q_proj.weight");
//! assert_eq!(q.shape, [64, 64]);
//!
//! // A cache for 1000 tokens takes 3 layers x 2 x 64 numbers x 4 bytes for each.
//! assert_eq!(airllm_model::kv_bytes(&config, KvFormat::F32, 1000), 1_536_000);
//! assert_eq!(airllm_model::kv_bytes(&config, KvFormat::F16, 1000), 768_000);
//! # Ok::<(), airllm_model::Error>(())
//! ```
#![forbid(unsafe_code)]

mod adapter;
pub mod arch;
mod bind;
mod config;
mod error;
mod field;
mod forward;
pub mod rope;
mod route;
mod scratch;
mod sequence;

pub use airllm_kernels::KvFormat;

pub use adapter::{LowRank, adapter_bytes};
pub use bind::{Binding, Bound, bind};
pub use config::{Config, Latent, Moe, TensorDecl, UnitDecl};
pub use error::{Error, Result};
pub use forward::{Inputs, Model, Observer, Span, Walk, Want};
pub use scratch::{activation_bytes, logits_bytes};
pub use sequence::{Sequence, kv_bytes};
