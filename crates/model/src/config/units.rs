//! The tensors that a configuration declares, unit by unit.

use super::Config;
use crate::arch::{Decl, Fold, Role, Shape};
use airllm_format::NumFormat;
use std::ops::Range;

/// A unit that streams as a whole, as a configuration declares it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UnitDecl {
    /// "embed", "layer.N", "layer.N.expert.E" or "head".
    pub name: String,
    /// The shard it is stored in: the unit itself, or for an expert its layer.
    pub shard: String,
    /// Whether it is read only when asked for, as experts are, instead of in every pass.
    pub on_demand: bool,
    /// Its tensors, in the order of use.
    pub tensors: Vec<TensorDecl>,
}

/// A tensor that a configuration declares.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TensorDecl {
    /// What it is for.
    pub role: Role,
    /// The role's name ("q", "attn_norm"), as shards and catalogs have it.
    pub name: String,
    /// The tensor of the checkpoint that it is, or is a part of.
    pub hf: String,
    /// Rows of that tensor in the checkpoint; of a vector, its numbers.
    pub hf_rows: usize,
    /// Which of those rows it is made of, in order. One span of all of them where it is the whole tensor;
    /// a part of them where the checkpoint fuses several tensors into one.
    pub spans: Vec<Range<usize>>,
    /// What happens to its numbers on the way.
    pub fold: Fold,
    /// Whether it is not the tensor of that role but the order of its columns, f32 numbers of columns; see
    /// [`Config::reordered`].
    pub is_order: bool,
    /// `[dim]` or `[rows, cols]`.
    pub shape: Vec<usize>,
    /// The narrowest format it may be rounded to. F32 for vectors, which are always stored so.
    pub floor: NumFormat,
}

impl UnitDecl {
    /// The name of one of its tensors inside its shard: "q", or "expert.3.gate".
    pub fn entry(&self, tensor: &TensorDecl) -> String {
        match self.name.strip_prefix(&self.shard).and_then(|rest| rest.strip_prefix('.')) {
            Some(expert) => format!("{expert}.{}", tensor.name),
            None => tensor.name.clone(),
        }
    }
}

impl TensorDecl {
    /// Whether it is a tensor of the checkpoint just as it is, as far as rows go.
    pub fn is_whole(&self) -> bool {
        matches!(&self.spans[..], [only] if *only == (0..self.hf_rows))
    }

    /// Rows; 1 for a vector.
    pub fn rows(&self) -> usize {
        if self.is_vector() { 1 } else { self.shape[0] }
    }

    /// Numbers in a row.
    pub fn cols(&self) -> usize {
        self.shape.last().copied().unwrap_or(0)
    }

    /// Whether it is a norm or a bias, kept in f32.
    pub fn is_vector(&self) -> bool {
        self.shape.len() < 2
    }
}

impl Config {
    /// Every tensor of the model: "embed", "layer.0" with its experts behind it, …, "head".
    pub fn units(&self) -> Vec<UnitDecl> {
        let mut units = Vec::with_capacity(self.layers + 2);
        let mut unit = |name: String, shard: &str, prefix: &str, decls: &[Decl], layer: usize| {
            let there = decls.iter().filter(|decl| decl.when.holds(self, layer));
            let tensors = there.flat_map(|decl| self.tensors(prefix, decl)).collect();
            units.push(UnitDecl { on_demand: name != shard, shard: shard.into(), name, tensors });
        };
        unit("embed".into(), "embed", "", self.arch.embed, 0);
        for layer in 0..self.layers {
            let (name, prefix) =
                (format!("layer.{layer}"), self.arch.layer_prefix.replace("{}", &layer.to_string()));
            unit(name.clone(), &name, &prefix, self.arch.layer, layer);
            for expert in 0..self.experts(layer) {
                let of = self.arch.expert_prefix.replace("{}", &expert.to_string());
                let own = format!("{name}.expert.{expert}");
                unit(own, &name, &format!("{prefix}{of}"), self.arch.expert, layer);
            }
        }
        unit("head".into(), "head", "", self.arch.head, 0);
        units
    }

    /// Experts of a layer; 0 where it has one feed-forward block.
    pub fn experts(&self, layer: usize) -> usize {
        self.moe.as_ref().filter(|moe| moe.is_sparse(layer)).map_or(0, |moe| moe.experts)
    }

    /// The tensors of one pass over the weights as `(unit, tensor)`, in the order of use.
    ///
    /// Experts are not among them, as only some are used. Nor is an embedding of its own, as its rows are
    /// fetched singly; one that also serves as the head comes last.
    pub fn pass(&self) -> Vec<(String, String)> {
        let units = self.units();
        let mut pass: Vec<_> = units
            .iter()
            .skip(1)
            .filter(|unit| !unit.on_demand)
            .flat_map(|unit| unit.tensors.iter().map(|t| (unit.name.clone(), t.name.clone())))
            .collect();
        if self.tied {
            let embed = units.first().map(|u| (u.name.clone(), Role::Embed.name().into()));
            pass.extend(embed);
        }
        pass
    }

    /// A tensor, and before it the order of its columns where they have another one.
    fn tensors(&self, prefix: &str, decl: &Decl) -> impl Iterator<Item = TensorDecl> {
        let tensor = self.tensor(prefix, decl);
        let order = self.reordered.contains(&tensor.hf).then(|| {
            let cols = tensor.cols();
            TensorDecl {
                name: format!("{}_order", tensor.name),
                hf_rows: cols,
                spans: std::iter::once(0..cols).collect(),
                fold: Fold::None,
                is_order: true,
                shape: vec![cols],
                floor: NumFormat::F32,
                ..tensor.clone()
            }
        });
        order.into_iter().chain([tensor])
    }

    fn tensor(&self, prefix: &str, decl: &Decl) -> TensorDecl {
        let shape = match decl.shape {
            Shape::Vector(dim) => vec![dim.of(self)],
            Shape::Matrix(rows, cols) => vec![rows.of(self), cols.of(self)],
        };
        let (hf_rows, spans) = decl.part.spans(self, shape[0]);
        TensorDecl {
            role: decl.role,
            name: decl.role.name().into(),
            hf: format!("{prefix}{}", decl.hf),
            hf_rows,
            spans,
            fold: if self.norm_offset && decl.role.is_norm() { Fold::AddOne } else { decl.fold },
            is_order: false,
            shape,
            floor: decl.floor,
        }
    }
}
