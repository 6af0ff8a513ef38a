//! What can go wrong between a configuration and its logits.

/// Errors of this crate. Each says what was expected and what was found.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A field of `config.json` has a value that no model of this family can have.
    #[error("config: {field}: expected {expected}, found {found}")]
    Config {
        /// The field, with the object it lies in ("rope_scaling.factor").
        field: String,
        /// What would have been accepted.
        expected: String,
        /// The value as it stands in the file, shortened; "nothing" where it is absent.
        found: String,
    },
    /// The checkpoint is of a family that is not known here.
    #[error("config: architecture {found} is not known; known are {known}")]
    Architecture {
        /// What the configuration names.
        found: String,
        /// Every name that is understood.
        known: String,
    },
    /// The catalog does not hold what the configuration declares.
    #[error("{unit}/{tensor}: expected {expected}, found {found}")]
    Binding {
        /// The unit ("layer.3").
        unit: String,
        /// The tensor in it ("q").
        tensor: String,
        /// What the configuration declares.
        expected: String,
        /// What the catalog has.
        found: String,
    },
    /// A sequence's cache has no room for the tokens it is given.
    #[error(
        "the cache of sequence {span} has room for {capacity} tokens; it holds {len} and {more} more were given"
    )]
    Cache {
        /// Index of the span in the call.
        span: usize,
        /// Tokens the cache can hold.
        capacity: usize,
        /// Tokens it holds.
        len: usize,
        /// Tokens that were to be added.
        more: usize,
    },
    /// A call that cannot be answered.
    #[error("{0}")]
    Input(String),
    /// The device refused.
    #[error(transparent)]
    Device(#[from] airllm_kernels::Error),
    /// The device refused, or failed, while a layer was computed. A device that works behind the host may say of
    /// an earlier layer's work only now that it failed.
    #[error("layer {layer}: {source}")]
    Layer {
        /// The layer, from 0 on.
        layer: usize,
        /// What the device said.
        source: airllm_kernels::Error,
    },
    /// The stream of weights broke.
    #[error(transparent)]
    Stream(#[from] airllm_stream::Error),
}

impl Error {
    /// The same error, knowing the layer.
    pub(crate) fn in_layer(self, layer: usize) -> Self {
        match self {
            Self::Device(source) => Self::Layer { layer, source },
            other => other,
        }
    }
}

/// A result of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;
