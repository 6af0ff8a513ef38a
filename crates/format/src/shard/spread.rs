//! How the bytes of shards lie over several folders, so that the drives below are read at the same time.
//!
//! A shard is laid out as ever, and then dealt out: of every turn of a few megabytes the first folder gets so many
//! blocks, the next one so many, as their drives are fast. Each folder has one file a shard with its blocks one behind
//! the other: valid safetensors with one tensor, from byte 4096 on, which says which part of what it is. Blocks are
//! whole pages, so that a direct read of the shard is direct reads of its parts.

use super::layout::{ALIGNMENT, ShardTag};
use crate::disk::{Advice, ReadAt, advise, open_file};
use crate::safetensors::Header;
use crate::{Error, Result};
use serde::{Deserialize, Serialize};
use serde_json::json;
use std::fs::File;
use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};

/// Bytes of a block.
const BLOCK: u64 = 64 << 10;

/// Blocks of a turn, where shares are chosen by rates: 4 MiB, so that small stripes too have bytes of every drive.
const TURN: u32 = 64;

/// The most blocks of a turn that are believed.
const MOST: u32 = 1 << 16;

/// Bytes in front of the blocks of a part.
pub const PART_HEAD: u64 = ALIGNMENT;

/// The share of each folder: of every turn, the first one has so many blocks of 64 KiB, then the next one so many.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Spread {
    shares: Vec<u32>,
}

/// A run of bytes of a shard that lies in one part.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Piece {
    /// Index of the part.
    pub part: usize,
    /// Offset in the part's file.
    pub at: u64,
    /// Which of the bytes asked for these are.
    pub range: Range<usize>,
}

impl Spread {
    /// Shares in proportion to rates (any unit), at least a 64th each. `None` for fewer than two folders or more than
    /// 32, and for rates that are no positive numbers.
    ///
    /// ```
    /// use airllm_format::shard::Spread;
    /// let spread = Spread::by_rates(&[3e9, 1e9]).ok_or("two drives")?;
    /// assert_eq!(spread.shares(), [48, 16]);
    /// // Of 8 MiB the first drive has 6.
    /// assert_eq!(spread.part_len(0, 8 << 20), 6 << 20);
    /// # Ok::<(), &str>(())
    /// ```
    pub fn by_rates(rates: &[f64]) -> Option<Self> {
        let sum: f64 = rates.iter().sum();
        let sound = rates.iter().all(|rate| *rate > 0.0) && sum.is_finite();
        if !(2..=32).contains(&rates.len()) || !sound {
            return None;
        }
        let mut shares: Vec<u32> =
            rates.iter().map(|rate| ((rate / sum * f64::from(TURN)).round() as u32).max(1)).collect();
        // What rounding has made too much or too little is the business of the largest.
        while shares.iter().sum::<u32>() != TURN {
            let more = shares.iter().sum::<u32>() < TURN;
            if let Some(most) = shares.iter_mut().max() {
                *most = if more { *most + 1 } else { *most - 1 };
            }
        }
        Some(Self { shares })
    }

    /// Blocks of a turn, by folder.
    pub fn shares(&self) -> &[u32] {
        &self.shares
    }

    /// What must hold of shares that a file names.
    pub(crate) fn check(&self) -> Result<(), String> {
        let sum = self.shares.iter().try_fold(0u32, |sum, share| sum.checked_add(*share));
        match sum {
            Some(sum)
                if sum <= MOST && self.shares.len() >= 2 && self.shares.iter().all(|share| *share > 0) =>
            {
                Ok(())
            }
            _ => Err(format!("shares {:?}: two or more are needed, none of them zero", self.shares)),
        }
    }

    fn turn(&self) -> u64 {
        self.shares.iter().map(|share| u64::from(*share)).sum::<u64>() * BLOCK
    }

    /// Where the part's bytes begin in a turn, and how many there are.
    fn of(&self, part: usize) -> (u64, u64) {
        let before: u64 = self.shares[..part].iter().map(|share| u64::from(*share)).sum();
        (before * BLOCK, u64::from(self.shares[part]) * BLOCK)
    }

    /// Bytes that one part has of a shard of `len` bytes, without what is in front of them in its file.
    pub fn part_len(&self, part: usize, len: u64) -> u64 {
        let (from, own) = self.of(part);
        len / self.turn() * own + (len % self.turn()).saturating_sub(from).min(own)
    }

    /// The runs in which `len` bytes at `offset` of a shard lie, in order.
    pub fn pieces(&self, offset: u64, len: usize) -> Vec<Piece> {
        let mut pieces: Vec<Piece> = Vec::new();
        let mut done = 0;
        while done < len {
            let at = offset + done as u64;
            let (turn, within) = (at / self.turn(), at % self.turn());
            let part = (0..self.shares.len()).rfind(|&part| self.of(part).0 <= within).unwrap_or(0);
            let (from, own) = self.of(part);
            let take = (from + own - within).min((len - done) as u64) as usize;
            pieces.push(Piece { part, at: PART_HEAD + turn * own + within - from, range: done..done + take });
            done += take;
        }
        pieces
    }
}

/// Where the shards of a model lie: in one folder, or spread over several.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Folders {
    dirs: Vec<PathBuf>,
    spread: Option<Spread>,
}

impl Folders {
    /// One folder with everything.
    pub fn one(dir: &Path) -> Self {
        Self { dirs: vec![dir.to_path_buf()], spread: None }
    }

    /// Several folders, one for each share.
    ///
    /// # Errors
    /// [`Error::Malformed`] where there are more or fewer.
    pub fn spread(dirs: Vec<PathBuf>, spread: Spread) -> Result<Self> {
        let fail =
            |what: String| Error::malformed(dirs.first().map_or(Path::new(""), PathBuf::as_path), what);
        spread.check().map_err(fail)?;
        if dirs.len() != spread.shares.len() {
            return Err(fail(format!("{} folders for {} shares", dirs.len(), spread.shares.len())));
        }
        Ok(Self { dirs, spread: Some(spread) })
    }

    /// The folders, in the order of the parts.
    pub fn dirs(&self) -> &[PathBuf] {
        &self.dirs
    }

    /// How bytes are dealt out to them, if there are several.
    pub fn shares(&self) -> Option<&Spread> {
        self.spread.as_ref()
    }

    /// The first folder, which stands for all in messages.
    pub fn first(&self) -> &Path {
        &self.dirs[0]
    }

    /// The files of a shard: one, or one for each part.
    pub fn paths(&self, file: &str) -> Vec<PathBuf> {
        self.dirs.iter().map(|dir| dir.join(file)).collect()
    }

    /// Lengths of the files of a shard of `len` bytes.
    pub(crate) fn lens(&self, len: u64) -> Vec<u64> {
        match &self.spread {
            None => vec![len],
            Some(spread) => (0..self.dirs.len()).map(|part| PART_HEAD + spread.part_len(part, len)).collect(),
        }
    }

    /// What stands in front of the bytes of each file: nothing, or the header of a part.
    pub(crate) fn heads(&self, tag: &ShardTag, len: u64) -> Vec<Vec<u8>> {
        match &self.spread {
            None => vec![Vec::new()],
            Some(spread) => (0..self.dirs.len()).map(|part| head(spread, part, tag, len)).collect(),
        }
    }

    /// Opens a shard to read it as a whole.
    ///
    /// # Errors
    /// [`Error::Missing`] and [`Error::Io`] for a file that cannot be opened, [`Error::Malformed`] where a part is no
    /// part of such a shard.
    pub fn open(&self, file: &str) -> Result<ShardFile> {
        let mut parts = Vec::with_capacity(self.dirs.len());
        let mut len = 0;
        for path in self.paths(file) {
            let (part, bytes) = open_file(&path)?;
            len += match &self.spread {
                None => bytes,
                Some(_) => bytes.checked_sub(PART_HEAD).ok_or_else(|| {
                    Error::malformed(
                        &path,
                        format!("the file has {bytes} bytes, a part at least {PART_HEAD}"),
                    )
                })?,
            };
            parts.push(part);
        }
        let shard = ShardFile { parts, spread: self.spread.clone(), len };
        for ((path, part), expected) in self.paths(file).iter().zip(&shard.parts).zip(self.lens(len)) {
            let found = part.metadata().map_err(Error::io(path, "asking for the length"))?.len();
            if found != expected {
                return Err(Error::malformed(
                    path,
                    format!("the file has {found} bytes, {expected} are its part of a shard of {len}"),
                ));
            }
        }
        Ok(shard)
    }
}

/// The header of a part: one tensor, and what it is a part of.
fn head(spread: &Spread, part: usize, tag: &ShardTag, len: u64) -> Vec<u8> {
    let bytes = spread.part_len(part, len);
    let header = json!({
        "__metadata__": {
            "format": "airllm-part",
            "version": "1",
            "unit": tag.unit,
            "source": tag.source,
            "bits": tag.recipe,
            "part": part.to_string(),
            "shares": json!(spread.shares).to_string(),
            "shard_bytes": len.to_string(),
        },
        "blocks": { "dtype": "U8", "shape": [bytes], "data_offsets": [0, bytes] },
    });
    let mut json = header.to_string().into_bytes();
    json.resize(PART_HEAD as usize - 8, b' ');
    let mut head = (json.len() as u64).to_le_bytes().to_vec();
    head.append(&mut json);
    head
}

/// Whether a file begins with the header of a part.
pub(crate) fn in_parts(path: &Path, head: &[u8]) -> Result<bool> {
    let mut found = vec![0; head.len()];
    let read = File::open(path).and_then(|file| file.read_exact_at(&mut found, 0));
    read.map_err(Error::io(path, "reading the header"))?;
    Ok(found == head)
}

/// The shares that the part in a file was dealt out by; `None` where there is no part.
///
/// ```
/// use airllm_format::shard::dealt;
/// assert_eq!(dealt("no/such/file".as_ref()), None);
/// ```
pub fn dealt(path: &Path) -> Option<Spread> {
    let header = Header::read(path).ok()?;
    let spread: Spread = serde_json::from_str(header.metadata().get("shares")?).ok()?;
    spread.check().ok().map(|()| spread)
}

/// A shard that is read as a whole, in however many parts it lies.
#[derive(Debug)]
pub struct ShardFile {
    parts: Vec<File>,
    spread: Option<Spread>,
    len: u64,
}

impl ShardFile {
    /// Bytes of the shard.
    pub fn len(&self) -> u64 {
        self.len
    }

    /// Whether it has none, which no shard of a model has.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Fills `buf` with the bytes at `at`.
    ///
    /// # Errors
    /// The system's answer, or that the shard ends before.
    pub fn read_exact_at(&self, buf: &mut [u8], at: u64) -> io::Result<()> {
        match &self.spread {
            None => self.parts[0].read_exact_at(buf, at),
            Some(spread) => spread
                .pieces(at, buf.len())
                .into_iter()
                .try_for_each(|piece| self.parts[piece.part].read_exact_at(&mut buf[piece.range], piece.at)),
        }
    }
}

impl ReadAt for ShardFile {
    fn read_exact_at(&self, buf: &mut [u8], at: u64) -> io::Result<()> {
        ShardFile::read_exact_at(self, buf, at)
    }

    fn advise(&self, at: u64, len: u64, advice: Advice) {
        match &self.spread {
            None => advise(&self.parts[0], at, len, advice),
            // To the end.
            Some(_) if len == 0 => self.parts.iter().for_each(|part| advise(part, 0, 0, advice)),
            // A part that ends in the middle of a folio leaves it, until the next part ends behind it.
            Some(spread) => {
                for piece in spread.pieces(at, len as usize) {
                    let from = piece.at - piece.at % (2 << 20);
                    advise(&self.parts[piece.part], from, piece.at + piece.range.len() as u64 - from, advice);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn every_byte_has_one_place(
            shares in proptest::collection::vec(1u32..5, 2..5),
            len in 0u64..3_000_000,
            from in 0u64..3_000_000,
        ) {
            let spread = Spread { shares };
            let parts = spread.shares.len();
            prop_assert_eq!((0..parts).map(|part| spread.part_len(part, len)).sum::<u64>(), len);
            // The pieces follow each other, and what lies in front of a byte in its part is what the part has of what
            // lies in front of it in the shard.
            let mut done = 0;
            for piece in spread.pieces(from, len as usize) {
                prop_assert_eq!(piece.range.start, done);
                prop_assert!(!piece.range.is_empty());
                let before = from + piece.range.start as u64;
                prop_assert_eq!(piece.at - PART_HEAD, spread.part_len(piece.part, before));
                let behind = from + piece.range.end as u64;
                let own = spread.part_len(piece.part, behind) - spread.part_len(piece.part, before);
                prop_assert_eq!(own, piece.range.len() as u64);
                done = piece.range.end;
            }
            prop_assert_eq!(done, len as usize);
        }

        #[test]
        fn shares_follow_rates(rates in proptest::collection::vec(0.01f64..100.0, 2..6)) {
            let spread = Spread::by_rates(&rates).unwrap();
            prop_assert_eq!(spread.shares.iter().sum::<u32>(), TURN);
            let sum: f64 = rates.iter().sum();
            for (share, rate) in spread.shares.iter().zip(&rates) {
                // Half a block of rounding, and what the largest gives to those that would have none.
                let off = f64::from(*share) - rate / sum * f64::from(TURN);
                prop_assert!(*share > 0 && off.abs() <= 1.0 + rates.len() as f64);
            }
        }
    }

    #[test]
    fn what_cannot_be_spread() {
        for rates in [&[][..], &[1.0], &[1.0, 0.0], &[1.0, f64::NAN], &[1.0, f64::INFINITY], &[1.0; 33]] {
            assert_eq!(Spread::by_rates(rates), None, "{rates:?}");
        }
        for shares in [vec![], vec![4], vec![1, 0], vec![u32::MAX, 1], vec![1 << 16, 1]] {
            assert!(Spread { shares }.check().is_err());
        }
    }
}
