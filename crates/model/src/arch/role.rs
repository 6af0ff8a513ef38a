//! What tensors are for.

/// What a tensor is for. The forward asks for weights by role and knows no other name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Role {
    /// Token embedding, one row an id.
    Embed,
    /// Norm before the attention.
    AttnNorm,
    /// Projection to the latent queries (multi-head latent attention).
    QDown,
    /// Norm of the latent queries.
    QDownNorm,
    /// Query projection.
    Q,
    /// Bias of the query projection.
    QBias,
    /// Norm of each query head.
    QNorm,
    /// Projection to the latent that keys and values are made of.
    KvDown,
    /// Norm of that latent.
    KvDownNorm,
    /// The part of the keys that turns, one for all heads, where keys come from a latent.
    KRope,
    /// Key projection.
    K,
    /// Bias of the key projection.
    KBias,
    /// Norm of each key head.
    KNorm,
    /// Value projection.
    V,
    /// Bias of the value projection.
    VBias,
    /// Output projection of the attention.
    O,
    /// Bias of the output projection.
    OBias,
    /// Norm of what the attention adds.
    PostAttnNorm,
    /// Norm before the feed-forward block.
    MlpNorm,
    /// Scores of the experts.
    Router,
    /// What is added to the scores for the choice of experts alone.
    RouterBias,
    /// As `Gate`, of the expert that every token goes through.
    SharedGate,
    /// As `Up`, of that expert.
    SharedUp,
    /// As `Down`, of that expert.
    SharedDown,
    /// The weight of that expert, before its sigmoid.
    SharedRouter,
    /// The projection that goes through the activation.
    Gate,
    /// Its bias.
    GateBias,
    /// The projection that the activated one is multiplied with.
    Up,
    /// Its bias.
    UpBias,
    /// The projection back to the hidden width.
    Down,
    /// Its bias.
    DownBias,
    /// Norm of what the feed-forward block adds.
    PostMlpNorm,
    /// Norm after the last layer.
    FinalNorm,
    /// Projection to the vocabulary.
    Head,
}

impl Role {
    /// Every role.
    pub const ALL: &[Role] = &[
        Self::Embed,
        Self::AttnNorm,
        Self::QDown,
        Self::QDownNorm,
        Self::Q,
        Self::QBias,
        Self::QNorm,
        Self::KvDown,
        Self::KvDownNorm,
        Self::KRope,
        Self::K,
        Self::KBias,
        Self::KNorm,
        Self::V,
        Self::VBias,
        Self::O,
        Self::OBias,
        Self::PostAttnNorm,
        Self::MlpNorm,
        Self::Router,
        Self::RouterBias,
        Self::SharedGate,
        Self::SharedUp,
        Self::SharedDown,
        Self::SharedRouter,
        Self::Gate,
        Self::GateBias,
        Self::Up,
        Self::UpBias,
        Self::Down,
        Self::DownBias,
        Self::PostMlpNorm,
        Self::FinalNorm,
        Self::Head,
    ];

    /// Whether it is the weight of a norm.
    pub const fn is_norm(self) -> bool {
        matches!(
            self,
            Self::AttnNorm
                | Self::QDownNorm
                | Self::QNorm
                | Self::KvDownNorm
                | Self::KNorm
                | Self::PostAttnNorm
                | Self::MlpNorm
                | Self::PostMlpNorm
                | Self::FinalNorm
        )
    }

    /// Its name in shards, catalogs and messages.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Embed => "embed",
            Self::AttnNorm => "attn_norm",
            Self::QDown => "q_down",
            Self::QDownNorm => "q_down_norm",
            Self::Q => "q",
            Self::QBias => "q_bias",
            Self::QNorm => "q_norm",
            Self::KvDown => "kv_down",
            Self::KvDownNorm => "kv_down_norm",
            Self::KRope => "k_rope",
            Self::K => "k",
            Self::KBias => "k_bias",
            Self::KNorm => "k_norm",
            Self::V => "v",
            Self::VBias => "v_bias",
            Self::O => "o",
            Self::OBias => "o_bias",
            Self::PostAttnNorm => "post_attn_norm",
            Self::MlpNorm => "mlp_norm",
            Self::Router => "router",
            Self::RouterBias => "router_bias",
            Self::SharedGate => "shared_gate",
            Self::SharedUp => "shared_up",
            Self::SharedDown => "shared_down",
            Self::SharedRouter => "shared_router",
            Self::Gate => "gate",
            Self::GateBias => "gate_bias",
            Self::Up => "up",
            Self::UpBias => "up_bias",
            Self::Down => "down",
            Self::DownBias => "down_bias",
            Self::PostMlpNorm => "post_mlp_norm",
            Self::FinalNorm => "final_norm",
            Self::Head => "head",
        }
    }
}
