//! The sizes of a Llama or Mixtral model, and the tensors that follow from them.

use super::Dtype;

/// Sizes of a Llama model, or with experts of a Mixtral one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shape {
    /// Width of the residual stream.
    pub hidden: usize,
    /// Width inside the MLP.
    pub intermediate: usize,
    /// Decoder layers.
    pub layers: usize,
    /// Query heads.
    pub heads: usize,
    /// Key and value heads; divides `heads`.
    pub kv_heads: usize,
    /// Numbers a head; even. `heads * head_dim` need not be `hidden`.
    pub head_dim: usize,
    /// Rows of the embedding, at least [`Shape::MIN_VOCAB`].
    pub vocab: usize,
    /// The embedding serves as head; no `lm_head.weight` is written.
    pub tied: bool,
    /// Biases on q, k, v and o.
    pub attention_bias: bool,
    /// Biases on gate, up and down.
    pub mlp_bias: bool,
    /// `max_position_embeddings`.
    pub context: usize,
    /// Experts of a layer; 0 for one MLP.
    pub experts: usize,
    /// Experts that a token goes through.
    pub top_k: usize,
}

/// One tensor of the checkpoint.
#[derive(Debug, Clone, PartialEq)]
pub struct Tensor {
    /// Name in the file.
    pub name: String,
    /// `[d]` or `[out, in]`.
    pub shape: Vec<usize>,
    pub(super) mean: f32,
    pub(super) deviation: f32,
}

impl Shape {
    /// One token a byte, and two special ones.
    pub const MIN_VOCAB: usize = 258;

    /// A model of some 96,000 weights with grouped queries: big enough to be a model, small enough to
    /// be written and run in milliseconds.
    pub const TINY: Shape = Shape {
        hidden: 64,
        intermediate: 96,
        layers: 2,
        heads: 4,
        kv_heads: 2,
        head_dim: 16,
        vocab: 264,
        tied: false,
        attention_bias: false,
        mlp_bias: false,
        context: 512,
        experts: 0,
        top_k: 2,
    };

    /// The sizes of TinyLlama: 1.1 billion weights.
    pub const LLAMA_1B: Shape = Shape {
        hidden: 2048,
        intermediate: 5632,
        layers: 22,
        heads: 32,
        kv_heads: 4,
        head_dim: 64,
        vocab: 32000,
        context: 2048,
        ..Self::TINY
    };

    /// The sizes of Llama-2-7B: 6.7 billion weights.
    pub const LLAMA_7B: Shape = Shape {
        hidden: 4096,
        intermediate: 11008,
        layers: 32,
        heads: 32,
        kv_heads: 32,
        head_dim: 128,
        vocab: 32000,
        context: 4096,
        ..Self::TINY
    };

    /// A shape whose weights take at least `bytes`, and at most one layer more.
    ///
    /// The width grows with the size as it does in published models, the number of layers does the rest.
    pub fn of_size(bytes: u64, dtype: Dtype) -> Shape {
        const WIDTHS: [(u64, usize, usize, usize); 6] = [
            (4_000_000, 128, 2, 1000),
            (50_000_000, 512, 4, 8000),
            (400_000_000, 1024, 8, 32000),
            (3_000_000_000, 2048, 16, 32000),
            (20_000_000_000, 4096, 32, 32000),
            (u64::MAX, 8192, 64, 128_000),
        ];
        let weights = bytes / dtype.bytes() as u64;
        let (_, hidden, heads, vocab) =
            WIDTHS.into_iter().find(|(up_to, ..)| weights <= *up_to).unwrap_or(WIDTHS[5]);
        let mut shape = Shape {
            hidden,
            intermediate: (hidden * 11 / 4).next_multiple_of(64),
            layers: 0,
            heads,
            kv_heads: heads.div_ceil(4),
            head_dim: hidden / heads,
            vocab,
            context: 4096,
            ..Self::TINY
        };
        let rest = weights.saturating_sub(shape.parameters());
        shape.layers = 1;
        let layer = shape.parameters() - Shape { layers: 0, ..shape }.parameters();
        shape.layers = usize::try_from(rest.div_ceil(layer)).unwrap_or(usize::MAX).max(1);
        shape
    }

    /// Number of weights, biases included.
    pub fn parameters(&self) -> u64 {
        let tensors = self.tensors();
        tensors.iter().map(Tensor::elements).sum()
    }

    /// Every tensor in the order of use.
    pub fn tensors(&self) -> Vec<Tensor> {
        let Shape { hidden, intermediate, vocab, .. } = *self;
        let (q, kv) = (self.heads * self.head_dim, self.kv_heads * self.head_dim);
        let head_deviation = 1.5 / (hidden as f32).sqrt();
        let mut list = vec![Tensor {
            name: "model.embed_tokens.weight".into(),
            shape: vec![vocab, hidden],
            mean: 0.0,
            deviation: if self.tied { head_deviation } else { 1.0 },
        }];
        for layer in 0..self.layers {
            let prefix = format!("model.layers.{layer}");
            let norm = |name: &str| Tensor {
                name: format!("{prefix}.{name}.weight"),
                shape: vec![hidden],
                mean: 1.0,
                deviation: 0.1,
            };
            let linear = |name: &str, out: usize, inner: usize, bias: bool| {
                let weight = Tensor {
                    name: format!("{prefix}.{name}.weight"),
                    shape: vec![out, inner],
                    mean: 0.0,
                    deviation: 1.0 / (inner as f32).sqrt(),
                };
                let bias = bias.then(|| Tensor {
                    name: format!("{prefix}.{name}.bias"),
                    shape: vec![out],
                    mean: 0.0,
                    deviation: 0.1,
                });
                std::iter::once(weight).chain(bias)
            };
            let (a, m) = (self.attention_bias, self.mlp_bias);
            list.push(norm("input_layernorm"));
            list.extend(linear("self_attn.q_proj", q, hidden, a));
            list.extend(linear("self_attn.k_proj", kv, hidden, a));
            list.extend(linear("self_attn.v_proj", kv, hidden, a));
            list.extend(linear("self_attn.o_proj", hidden, q, a));
            list.push(norm("post_attention_layernorm"));
            if self.experts == 0 {
                list.extend(linear("mlp.gate_proj", intermediate, hidden, m));
                list.extend(linear("mlp.up_proj", intermediate, hidden, m));
                list.extend(linear("mlp.down_proj", hidden, intermediate, m));
                continue;
            }
            list.extend(linear("block_sparse_moe.gate", self.experts, hidden, false));
            for expert in 0..self.experts {
                let name = |part: &str| format!("block_sparse_moe.experts.{expert}.{part}");
                list.extend(linear(&name("w1"), intermediate, hidden, false));
                list.extend(linear(&name("w2"), hidden, intermediate, false));
                list.extend(linear(&name("w3"), intermediate, hidden, false));
            }
        }
        list.push(Tensor {
            name: "model.norm.weight".into(),
            shape: vec![hidden],
            mean: 1.0,
            deviation: 0.1,
        });
        if !self.tied {
            list.push(Tensor {
                name: "lm_head.weight".into(),
                shape: vec![vocab, hidden],
                mean: 0.0,
                deviation: head_deviation,
            });
        }
        list
    }
}

impl Tensor {
    /// Number of weights.
    pub fn elements(&self) -> u64 {
        self.shape.iter().map(|n| *n as u64).product()
    }
}
