//! Checksums of tensors that do not depend on how the rows are cut.

use xxhash_rust::xxh3::{Xxh3, xxh3_64_with_seed};

/// Part of a tensor's checksum: the wrapping sum over whole rows of `xxh3_64(row, seed = row index)`.
///
/// `first_row` is the index in the tensor of the first row in `rows`. The parts of a tensor, added with
/// `wrapping_add` in any order, give its checksum. Bytes behind the last whole row are left out.
///
/// ```
/// use airllm_format::shard::row_checksum;
/// let rows = [1, 2, 3, 4, 5, 6, 7, 8];
/// let whole = row_checksum(0, 2, &rows);
/// let parts = row_checksum(3, 2, &rows[6..]).wrapping_add(row_checksum(0, 2, &rows[..6]));
/// assert_eq!(whole, parts);
/// ```
pub fn row_checksum(first_row: u64, row_bytes: usize, rows: &[u8]) -> u64 {
    if row_bytes == 0 {
        return 0;
    }
    rows.chunks_exact(row_bytes)
        .zip(first_row..)
        .fold(0u64, |sum, (row, index)| sum.wrapping_add(xxh3_64_with_seed(row, index)))
}

/// The checksum of a tensor whose bytes come in pieces of any size, in order.
pub struct RowSums {
    row_bytes: usize,
    row: u64,
    sum: u64,
    /// The hash of a row of which only the first bytes have come, and how many.
    open: Option<(Box<Xxh3>, usize)>,
}

impl RowSums {
    /// Starts a tensor with rows of `row_bytes` bytes.
    pub fn new(row_bytes: usize) -> Self {
        Self { row_bytes: row_bytes.max(1), row: 0, sum: 0, open: None }
    }

    /// Takes the next bytes.
    pub fn update(&mut self, mut bytes: &[u8]) {
        if let Some((mut hash, have)) = self.open.take() {
            let take = bytes.len().min(self.row_bytes - have);
            let (head, rest) = bytes.split_at(take);
            hash.update(head);
            if have + take < self.row_bytes {
                self.open = Some((hash, have + take));
                return;
            }
            self.sum = self.sum.wrapping_add(hash.digest());
            self.row += 1;
            bytes = rest;
        }
        let whole = bytes.len() - bytes.len() % self.row_bytes;
        let (rows, rest) = bytes.split_at(whole);
        self.sum = self.sum.wrapping_add(row_checksum(self.row, self.row_bytes, rows));
        self.row += (whole / self.row_bytes) as u64;
        if !rest.is_empty() {
            let mut hash = Box::new(Xxh3::with_seed(self.row));
            hash.update(rest);
            self.open = Some((hash, rest.len()));
        }
    }

    /// The sum of all whole rows that have come.
    pub fn finish(self) -> u64 {
        self.sum
    }
}
