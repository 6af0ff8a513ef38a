//! From the tensors of a checkpoint to the tensors of shards: names, shapes, formats.
//!
//! The shapes and the order come from the model's declarations; what is checked here is that the
//! checkpoint has them. Nothing is read but headers.

use crate::{Error, Result};
use airllm_format::shard::{ShardTag, TensorSpec};
use airllm_format::{Bits, NumFormat, Repo};
use airllm_model::{Config, TensorDecl};
use airllm_stream::{Catalog, Tensor, TensorId, Unit};

/// One shard to write.
#[derive(Debug, Clone)]
pub(crate) struct UnitPlan {
    pub(crate) name: String,
    pub(crate) file: String,
    pub(crate) tensors: Vec<TensorPlan>,
}

/// One tensor to write.
#[derive(Debug, Clone)]
pub(crate) struct TensorPlan {
    pub(crate) decl: TensorDecl,
    /// How the checkpoint stores it.
    pub(crate) from: NumFormat,
    /// How the shard will.
    pub(crate) to: NumFormat,
}

impl TensorPlan {
    pub(crate) fn bytes(&self) -> u64 {
        (self.decl.rows() * self.to.row_bytes(self.decl.cols())) as u64
    }

    /// Bytes in the checkpoint.
    pub(crate) fn source_bytes(&self) -> u64 {
        (self.decl.rows() * self.from.row_bytes(self.decl.cols())) as u64
    }

    fn spec(&self) -> TensorSpec {
        TensorSpec { name: self.decl.name.clone(), format: self.to, shape: self.decl.shape.clone() }
    }
}

impl UnitPlan {
    pub(crate) fn specs(&self) -> Vec<TensorSpec> {
        self.tensors.iter().map(TensorPlan::spec).collect()
    }

    pub(crate) fn bytes(&self) -> u64 {
        self.tensors.iter().map(TensorPlan::bytes).sum()
    }

    pub(crate) fn tag(&self, fingerprint: &str, bits: Bits) -> ShardTag {
        ShardTag { unit: self.name.clone(), source: fingerprint.to_owned(), bits }
    }
}

/// The format a tensor is stored in: what the recipe asks for, but never narrower than the tensor's
/// floor and never wider than the checkpoint has it; vectors always in f32.
pub(crate) fn choose(from: NumFormat, floor: NumFormat, bits: Bits) -> NumFormat {
    let wanted = match bits {
        Bits::Source => from,
        Bits::Q8 => NumFormat::Q8,
        Bits::Q4 => NumFormat::Q4,
    };
    match floor {
        NumFormat::F32 => NumFormat::F32,
        // `NumFormat` is ordered from the widest to the narrowest.
        floor => wanted.min(floor).max(from),
    }
}

/// What to write for every unit of a model, checked against the checkpoint's headers.
pub(crate) fn units(repo: &Repo, config: &Config, bits: Bits) -> Result<Vec<UnitPlan>> {
    let mut units = Vec::new();
    for unit in config.units() {
        let tensors = unit
            .tensors
            .into_iter()
            .map(|decl| tensor(repo, &unit.name, decl, bits))
            .collect::<Result<_>>()?;
        units.push(UnitPlan { file: format!("{}.safetensors", unit.name), name: unit.name, tensors });
    }
    Ok(units)
}

fn tensor(repo: &Repo, unit: &str, decl: TensorDecl, bits: Bits) -> Result<TensorPlan> {
    let role = format!("the {} of {unit}", decl.name);
    let Some(found) = repo.tensor(&decl.hf) else {
        let dir = repo.dir().display();
        let what = format!(
            "{dir}: tensor `{}` is missing: {role}, {:?}, was expected among the {} tensors there",
            decl.hf,
            decl.shape,
            repo.tensors().len()
        );
        return Err(Error::Input { what });
    };
    let path = repo.files()[found.file].display();
    let info = &found.info;
    if info.shape != decl.shape {
        let what = format!(
            "{path}: tensor `{}` has shape {:?}, {role} was expected to be {:?} by config.json",
            decl.hf, info.shape, decl.shape
        );
        return Err(Error::Input { what });
    }
    let Some(from) = info.dtype.format() else {
        let what = format!(
            "{path}: tensor `{}` is stored as {}, {role} was expected as F32, F16 or BF16",
            decl.hf, info.dtype
        );
        return Err(Error::Input { what });
    };
    let to = choose(from, decl.floor, bits);
    Ok(TensorPlan { decl, from, to })
}

/// The catalog that the shards will have, for planning before they are written. Offsets are those of
/// tensors without gaps; planning does not look at them.
pub(crate) fn catalog(units: &[UnitPlan], config: &Config) -> Catalog {
    let mut catalog = Catalog::default();
    for (file, plan) in units.iter().enumerate() {
        let mut offset = 0;
        let tensors = plan.tensors.iter().map(|t| {
            let start = offset;
            offset += t.bytes();
            Tensor {
                name: t.decl.name.clone(),
                file,
                offset: start,
                format: t.to,
                rows: t.decl.rows(),
                cols: t.decl.cols(),
                checksum: None,
            }
        });
        catalog.units.push(Unit { name: plan.name.clone(), tensors: tensors.collect(), on_demand: false });
    }
    catalog.pass = pass(&catalog, config);
    catalog
}

/// The order of a pass, as far as the catalog has its tensors; binding refuses what is missing.
pub(crate) fn pass(catalog: &Catalog, config: &Config) -> Vec<TensorId> {
    config.pass().iter().filter_map(|(unit, tensor)| catalog.find(unit, tensor)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn formats() {
        use NumFormat::*;
        assert_eq!(choose(Bf16, F32, Bits::Q4), F32);
        assert_eq!(choose(Bf16, Q4, Bits::Source), Bf16);
        assert_eq!(choose(F32, Q4, Bits::Source), F32);
        assert_eq!(choose(Bf16, Q4, Bits::Q4), Q4);
        assert_eq!(choose(Bf16, Q8, Bits::Q4), Q8);
        assert_eq!(choose(F32, Q8, Bits::Q4), Q8);
        assert_eq!(choose(F16, Q4, Bits::Q8), Q8);
    }
}
