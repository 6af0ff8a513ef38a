//! How the bytes of a stripe lie in a buffer of the device.

use crate::cut::{Cut, Stripe};
use crate::{Catalog, Tensor};
use std::ops::Range;

/// Buffers of devices start at such a boundary, and so do parts that are copied one by one.
const ALIGNED: usize = 256;
/// Rows are read in units of this many bytes.
const UNIT: usize = 16;

/// Where a stripe's bytes go.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Layout {
    /// What is copied where.
    pub pieces: Vec<Piece>,
    /// Bytes of the buffer.
    pub bytes: usize,
    /// Where each part of the stripe starts in the buffer.
    pub at: Vec<usize>,
}

/// Bytes that are copied at once.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Piece {
    /// Where they lie in the slot.
    pub from: Range<usize>,
    /// Where they start in the buffer.
    pub to: usize,
}

impl Layout {
    /// The layouts of all stripes of a cut.
    pub fn all(catalog: &Catalog, cut: &Cut) -> Vec<Layout> {
        cut.stripes.iter().map(|stripe| Layout::of(catalog, stripe)).collect()
    }

    /// All in one piece, as it lies in the slot, if every part starts where devices can read it. Where a checkpoint
    /// has its tensors at odd offsets, a piece for each part.
    pub fn of(catalog: &Catalog, stripe: &Stripe) -> Layout {
        let parts = stripe.parts.iter().map(|part| {
            let row = catalog.get(part.id).map_or(0, Tensor::row_bytes);
            part.at..part.at + part.count * row
        });
        let parts: Vec<_> = parts.collect();
        let (Some(first), Some(last)) = (parts.first(), parts.last()) else {
            return Layout { pieces: Vec::new(), bytes: 0, at: Vec::new() };
        };
        if parts.iter().all(|part| part.start.is_multiple_of(UNIT)) {
            let from = first.start / ALIGNED * ALIGNED..last.end;
            let at = parts.iter().map(|part| part.start - from.start).collect();
            return Layout { bytes: from.len(), pieces: vec![Piece { from, to: 0 }], at };
        }
        let (mut pieces, mut end) = (Vec::with_capacity(parts.len()), 0_usize);
        for from in parts {
            let to = end.next_multiple_of(ALIGNED);
            end = to + from.len();
            pieces.push(Piece { from, to });
        }
        Layout { at: pieces.iter().map(|piece| piece.to).collect(), pieces, bytes: end }
    }

    /// Bytes that are copied.
    pub fn copied(&self) -> u64 {
        self.pieces.iter().map(|piece| piece.from.len() as u64).sum()
    }
}

#[cfg(all(test, not(feature = "loom")))]
mod tests {
    use super::*;
    use crate::tier::Tiers;
    use crate::{Tensor, TensorId, Unit};
    use airllm_format::NumFormat;

    /// The layout of one stripe that holds tensors of these bytes at these offsets.
    fn layout(tensors: &[(u64, usize)]) -> Layout {
        let tensor = |&(offset, bytes): &(u64, usize)| Tensor {
            name: "t".into(),
            file: 0,
            offset,
            format: NumFormat::F32,
            rows: 1,
            cols: bytes / 4,
            checksum: None,
        };
        let pass = (0..tensors.len()).map(|tensor| TensorId { unit: 0, tensor }).collect();
        let tensors = tensors.iter().map(tensor).collect();
        let catalog = Catalog { units: vec![Unit { name: "u".into(), tensors, on_demand: false }], pass };
        let Ok(cut) = Cut::new(&catalog, Tiers::pinned(&[]), 1 << 20) else { panic!("it can be cut") };
        assert_eq!(cut.stripes.len(), 1);
        Layout::of(&catalog, &cut.stripes[0])
    }

    #[test]
    fn what_lies_well_is_one_piece_without_what_lies_before() {
        let layout = layout(&[(4096 + 528, 160), (4096 + 768, 80), (4096 + 848, 1000)]);
        assert_eq!(layout.pieces, [Piece { from: 512..1848, to: 0 }]);
        assert_eq!((layout.at.as_slice(), layout.bytes), (&[16, 256, 336][..], 1336));
        assert_eq!(layout.copied(), 1336);
    }

    #[test]
    fn what_lies_at_odd_places_is_moved_to_even_ones() {
        let layout = layout(&[(4096 + 8, 160), (4096 + 168, 1000), (4096 + 1169, 4)]);
        let pieces = [(8..168, 0), (168..1168, 256), (1169..1173, 1280)];
        assert_eq!(layout.pieces, pieces.map(|(from, to)| Piece { from, to }));
        assert_eq!((layout.at.as_slice(), layout.bytes), (&[0, 256, 1280][..], 1284));
        assert_eq!(layout.copied(), 1164);
    }
}
