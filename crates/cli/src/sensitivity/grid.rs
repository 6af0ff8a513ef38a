//! A sensitivity as a grid: layers down, roles across.

use airllm::{Sensitivity, TensorSensitivity};

/// The matrices of a model by layer and role. The experts of a layer share a cell.
#[derive(Debug, Clone)]
pub struct Grid<'a> {
    /// The roles that layers have, in the order of their use.
    pub roles: Vec<&'a str>,
    /// "embed", "layer.0", …, "head", in the order of the units.
    pub rows: Vec<Row<'a>>,
}

#[derive(Debug, Clone)]
pub struct Row<'a> {
    /// The unit.
    pub name: &'a str,
    /// A cell for each role.
    pub cells: Vec<Cell>,
    /// All of the row; of "embed" and "head", which have no roles of layers, this alone.
    pub all: Cell,
}

/// What rounding does to some matrices.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Cell {
    /// Matrices; 0 where a layer has none of that role.
    pub tensors: usize,
    pub weights: u64,
    /// The sum of their divergences, each rounded alone to its `kl_format`.
    pub kl: f64,
}

/// The two blocks of a layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Block {
    Attention,
    FeedForward,
}

impl Cell {
    pub fn add(&mut self, tensor: &TensorSensitivity) {
        self.join(&Cell { tensors: 1, weights: tensor.weights(), kl: tensor.kl });
    }

    pub fn join(&mut self, other: &Cell) {
        self.tensors += other.tensors;
        self.weights += other.weights;
        self.kl += other.kl;
    }

    pub fn sum<'a>(cells: impl IntoIterator<Item = &'a Cell>) -> Cell {
        let mut sum = Cell::default();
        cells.into_iter().for_each(|cell| sum.join(cell));
        sum
    }

    /// Divergence per weight; of the experts of a layer this is their mean.
    pub fn per_weight(&self) -> f64 {
        self.kl / self.weights.max(1) as f64
    }
}

impl<'a> Grid<'a> {
    pub fn of(sensitivity: &'a Sensitivity) -> Grid<'a> {
        let mut grid = Grid { roles: Vec::new(), rows: Vec::new() };
        for tensor in &sensitivity.tensors {
            let unit = tensor.unit.split_once(".expert.").map_or(&tensor.unit[..], |(layer, _)| layer);
            if is_layer(unit) && !grid.roles.contains(&tensor.role()) {
                grid.roles.push(tensor.role());
            }
        }
        // Layers of mixtures may begin with one that has other roles: attention comes first all the same.
        grid.roles.sort_by_key(|role| block(role) == Block::FeedForward);
        for tensor in &sensitivity.tensors {
            let name = tensor.unit.split_once(".expert.").map_or(&tensor.unit[..], |(layer, _)| layer);
            let at = grid.rows.iter().rposition(|row| row.name == name).unwrap_or_else(|| {
                let cells = vec![Cell::default(); grid.roles.len()];
                grid.rows.push(Row { name, cells, all: Cell::default() });
                grid.rows.len() - 1
            });
            let row = &mut grid.rows[at];
            row.all.add(tensor);
            if let Some(column) = grid.roles.iter().position(|role| is_layer(name) && *role == tensor.role())
            {
                row.cells[column].add(tensor);
            }
        }
        grid
    }

    /// The rows of layers.
    pub fn layers(&self) -> impl DoubleEndedIterator<Item = &Row<'a>> {
        self.rows.iter().filter(|row| is_layer(row.name))
    }

    /// The cells of a row that belong to a block.
    pub fn block(&self, row: &Row, which: Block) -> Cell {
        let cells = self.roles.iter().zip(&row.cells);
        Cell::sum(cells.filter(|(role, _)| block(role) == which).map(|(_, cell)| cell))
    }
}

pub fn is_layer(unit: &str) -> bool {
    unit.starts_with("layer.")
}

/// The block that a role is a part of.
pub fn block(role: &str) -> Block {
    match role {
        "gate" | "up" | "down" | "router" => Block::FeedForward,
        role if role.starts_with("shared_") => Block::FeedForward,
        _ => Block::Attention,
    }
}
