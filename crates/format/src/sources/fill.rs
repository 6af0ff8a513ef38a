//! Filling a buffer from reads that may be short, interrupted, or reach the end of the file.

use std::io;

/// What stopped a fill.
#[derive(Debug)]
pub(super) enum Stop {
    /// The system's answer, and at which offset.
    Io(u64, io::Error),
    /// The file ended at this offset, before the length it had when it was opened.
    Ended(u64),
}

/// Fills `buf` with the bytes at `offset` of something `len` bytes long; what lies behind its end becomes
/// zero. `read` reads into a buffer at an offset and may return less than asked.
pub(super) fn fill(
    len: u64,
    offset: u64,
    buf: &mut [u8],
    mut read: impl FnMut(&mut [u8], u64) -> io::Result<usize>,
) -> Result<(), Stop> {
    let there = len.saturating_sub(offset).min(buf.len() as u64) as usize;
    let mut have = 0;
    while have < there {
        let at = offset + have as u64;
        // The rest of the buffer, not only the rest of the file: a direct read wants whole blocks.
        match read(&mut buf[have..], at) {
            Ok(0) => return Err(Stop::Ended(at)),
            Ok(n) => have += n,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(Stop::Io(at, e)),
        }
    }
    buf[there..].fill(0);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn heals_short_and_interrupted_reads(
            bytes in proptest::collection::vec(any::<u8>(), 0..600),
            offset in 0u64..700,
            want in 0usize..700,
            steps in proptest::collection::vec(0usize..40, 1..20),
        ) {
            let mut buf = vec![0xAA; want];
            let mut turn = 0;
            fill(bytes.len() as u64, offset, &mut buf, |part, at| {
                turn += 1;
                let step = steps[turn % steps.len()];
                if step == 0 && turn % 2 == 0 {
                    return Err(io::ErrorKind::Interrupted.into());
                }
                let from = &bytes[(at as usize).min(bytes.len())..];
                let n = from.len().min(part.len()).min(step + 1);
                part[..n].copy_from_slice(&from[..n]);
                Ok(n)
            }).unwrap();
            for (i, &b) in buf.iter().enumerate() {
                prop_assert_eq!(b, bytes.get(offset as usize + i).copied().unwrap_or(0));
            }
        }
    }

    #[test]
    fn a_file_that_shrank_is_told() {
        let stop = fill(10, 0, &mut [0; 10], |_, at| Ok(if at < 4 { 4 } else { 0 }));
        assert!(matches!(stop, Err(Stop::Ended(4))));
        let stop = fill(10, 2, &mut [0; 4], |_, _| Err(io::ErrorKind::NotFound.into()));
        assert!(matches!(stop, Err(Stop::Io(2, _))));
    }
}
