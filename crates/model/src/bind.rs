//! Finding the tensors that a configuration declares in a catalog.

use crate::arch::Role;
use crate::config::TensorDecl;
use crate::{Config, Error, Result};
use airllm_format::NumFormat;
use airllm_stream::{Catalog, Tensor, TensorId};
use std::collections::HashMap;

/// Where the tensors of a model are, by unit and role.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Binding {
    /// "embed", the layers with their experts behind them, "head"; in each the bound tensors in the order
    /// of use.
    units: Vec<Vec<Bound>>,
    /// Index of each layer's unit.
    layers: Vec<usize>,
}

/// One tensor, found and checked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bound {
    /// What it is for.
    pub role: Role,
    /// Its place in the catalog.
    pub id: TensorId,
    /// How its rows are packed.
    pub format: NumFormat,
    /// Rows; 1 for a vector.
    pub rows: usize,
    /// Numbers in a row.
    pub cols: usize,
    /// The tensor that says in which order its columns are, where that is not the input's.
    pub order: Option<TensorId>,
}

/// Finds every tensor that `config` declares in `catalog`, and checks its shape, its format and its
/// place in the pass.
///
/// Tensors that the configuration does not declare may be in the catalog; in the pass they may not.
pub fn bind(config: &Config, catalog: &Catalog) -> Result<Binding> {
    // Models with experts have tens of thousands of tensors: searching for each would take seconds.
    let ids = catalog.units.iter().enumerate().flat_map(|(unit, u)| {
        u.tensors.iter().enumerate().map(move |(tensor, t)| ((&*u.name, &*t.name), TensorId { unit, tensor }))
    });
    let ids: HashMap<(&str, &str), TensorId> = ids.collect();
    let mut units = Vec::with_capacity(config.layers + 2);
    let mut layers = Vec::with_capacity(config.layers);
    for unit in config.units() {
        if unit.name.starts_with("layer.") && !unit.on_demand {
            layers.push(units.len());
        }
        let mut bound = Vec::with_capacity(unit.tensors.len());
        let mut order = None;
        for decl in &unit.tensors {
            let found = ids.get(&(&*unit.name, &*decl.name)).copied();
            let Some((id, tensor)) = found.and_then(|id| Some((id, catalog.get(id)?))) else {
                let expected = format!("{} ({})", shape(decl.rows(), decl.cols()), decl.hf);
                return Err(mismatch(&unit.name, &decl.name, expected, "nothing"));
            };
            check(&unit.name, decl, tensor)?;
            if decl.is_order {
                order = Some(id);
                continue;
            }
            let &Tensor { format, rows, cols, .. } = tensor;
            bound.push(Bound { role: decl.role, id, format, rows, cols, order: order.take() });
        }
        units.push(bound);
    }
    check_pass(config, catalog)?;
    Ok(Binding { units, layers })
}

impl Binding {
    /// The token embedding.
    pub fn embed(&self) -> Option<&Bound> {
        self.get(0, Role::Embed)
    }

    /// A tensor of layer `layer`; `None` where the model has no such tensor.
    pub fn layer(&self, layer: usize, role: Role) -> Option<&Bound> {
        self.get(*self.layers.get(layer)?, role)
    }

    /// A tensor of an expert of layer `layer`; `None` where there is no such expert.
    pub fn expert(&self, layer: usize, expert: usize, role: Role) -> Option<&Bound> {
        let unit = self.layers.get(layer)? + 1 + expert;
        let end = self.layers.get(layer + 1).copied().unwrap_or(self.units.len() - 1);
        self.get(unit, role).filter(|_| unit < end)
    }

    /// A tensor of the head; `None` where the model has no such tensor.
    pub fn head(&self, role: Role) -> Option<&Bound> {
        self.get(self.units.len().checked_sub(1)?, role)
    }

    /// A tensor of a unit, by its index in [`Config::units`].
    pub(crate) fn get(&self, unit: usize, role: Role) -> Option<&Bound> {
        self.units.get(unit)?.iter().find(|bound| bound.role == role)
    }
}

fn check(unit: &str, decl: &TensorDecl, tensor: &Tensor) -> Result<()> {
    let (rows, cols) = (decl.rows(), decl.cols());
    if (tensor.rows, tensor.cols) != (rows, cols) {
        let found = shape(tensor.rows, tensor.cols);
        return Err(mismatch(unit, &decl.name, shape(rows, cols), found));
    }
    if decl.is_vector() && tensor.format != NumFormat::F32 {
        return Err(mismatch(unit, &decl.name, "a vector of f32", tensor.format.name()));
    }
    // `NumFormat` is ordered from the widest to the narrowest. What a checkpoint comes in is kept.
    if tensor.format > decl.floor && !tensor.format.is_foreign() {
        let expected = format!("{} or wider", decl.floor);
        return Err(mismatch(unit, &decl.name, expected, tensor.format.name()));
    }
    Ok(())
}

fn check_pass(config: &Config, catalog: &Catalog) -> Result<()> {
    let declared = config.pass();
    for place in 0..declared.len().max(catalog.pass.len()) {
        let found = catalog.pass.get(place).map(|&id| match catalog.get(id) {
            Some(tensor) => format!("{}/{}", catalog.units[id.unit].name, tensor.name),
            None => format!("tensor {} of unit {}, which does not exist", id.tensor, id.unit),
        });
        let found = found.unwrap_or_else(|| "the end".into());
        let (unit, tensor, expected) = match declared.get(place) {
            Some((unit, tensor)) => (unit.as_str(), tensor.as_str(), format!("{unit}/{tensor}")),
            None => ("pass", "end", "the end".into()),
        };
        if found != expected {
            let expected = format!("{expected} at place {place} of the pass");
            return Err(mismatch(unit, tensor, expected, found));
        }
    }
    Ok(())
}

fn shape(rows: usize, cols: usize) -> String {
    if rows == 1 { format!("[{cols}]") } else { format!("[{rows}, {cols}]") }
}

fn mismatch(unit: &str, tensor: &str, expected: impl Into<String>, found: impl Into<String>) -> Error {
    Error::Binding {
        unit: unit.into(),
        tensor: tensor.into(),
        expected: expected.into(),
        found: found.into(),
    }
}
