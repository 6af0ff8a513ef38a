//! Reads with several requests in flight from one thread: io_uring, where the system has it.
//!
//! Containers and hardened kernels forbid it, so it is tried once, by a request that does nothing; where that fails
//! it is not offered.

use airllm_format::QueuedReads;
use std::sync::Arc;

/// What reads with io_uring; where the system does not let us, why not, in a line. Asked once.
pub fn shared() -> Result<Arc<dyn QueuedReads>, &'static str> {
    #[cfg(target_os = "linux")]
    {
        static TRIED: std::sync::OnceLock<Result<Arc<linux::Uring>, String>> = std::sync::OnceLock::new();
        match TRIED.get_or_init(|| linux::Uring::open().map(Arc::new).map_err(|error| error.to_string())) {
            Ok(uring) => Ok(uring.clone()),
            Err(why) => Err(why),
        }
    }
    #[cfg(not(target_os = "linux"))]
    Err("only Linux has io_uring")
}

#[cfg(target_os = "linux")]
mod linux {
    use airllm_format::QueuedReads;
    use io_uring::{IoUring, Probe, opcode, types};
    use std::fs::File;
    use std::io;
    use std::os::fd::AsRawFd;
    use std::sync::{Mutex, PoisonError};
    use std::time::Duration;

    /// Requests in flight at once.
    const DEPTH: usize = 8;

    /// Bytes of a request. Half a slot's worth would leave the disk with little to do between two reads.
    const PIECE: usize = 1 << 20;

    /// Rings of the threads that read now, or have read; one thread has one ring at a time.
    pub struct Uring {
        spare: Mutex<Vec<IoUring>>,
    }

    impl std::fmt::Debug for Uring {
        fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            f.write_str("Uring")
        }
    }

    /// A part of a buffer, and how much of it has come.
    struct Piece {
        at: usize,
        len: usize,
        have: usize,
        /// Nothing more comes: it is whole, the file ends in it, or a request of it failed.
        over: bool,
    }

    impl Uring {
        /// Sets a ring up and lets it do nothing once.
        pub fn open() -> io::Result<Self> {
            let mut ring = IoUring::new(DEPTH as u32)?;
            let mut probe = Probe::new();
            ring.submitter().register_probe(&mut probe)?;
            if !probe.is_supported(opcode::Read::CODE) {
                return Err(io::Error::new(io::ErrorKind::Unsupported, "this kernel's io_uring cannot read"));
            }
            // SAFETY: the request does nothing and names no memory.
            unsafe { ring.submission().push(&opcode::Nop::new().build()) }.map_err(io::Error::other)?;
            ring.submit_and_wait(1)?;
            let result = ring.completion().next().map(|done| done.result());
            match result {
                Some(0) => Ok(Self { spare: Mutex::new(vec![ring]) }),
                _ => Err(io::Error::other("a request that does nothing failed")),
            }
        }

        fn spare(&self) -> std::sync::MutexGuard<'_, Vec<IoUring>> {
            // A list of rings is right whatever happened to the thread that held it.
            self.spare.lock().unwrap_or_else(PoisonError::into_inner)
        }
    }

    impl QueuedReads for Uring {
        fn read_at(&self, file: &File, offset: u64, buf: &mut [u8]) -> io::Result<usize> {
            let spare = self.spare().pop();
            let mut ring = match spare {
                Some(ring) => ring,
                None => IoUring::new(DEPTH as u32)?,
            };
            let done = read(&mut ring, file, offset, buf);
            // A ring with requests that the kernel would not take is closed with them.
            if ring.submission().is_empty() {
                self.spare().push(ring);
            }
            done
        }
    }

    /// Returns when no request is in flight any more, whatever happened.
    fn read(ring: &mut IoUring, file: &File, offset: u64, buf: &mut [u8]) -> io::Result<usize> {
        let mut pieces: Vec<Piece> = (0..buf.len())
            .step_by(PIECE)
            .map(|at| Piece { at, len: PIECE.min(buf.len() - at), have: 0, over: false })
            .collect();
        let fd = types::Fd(file.as_raw_fd());
        let mut waiting: Vec<usize> = (0..pieces.len()).rev().collect();
        let (mut flying, mut failure) = (0, None);
        while flying > 0 || (failure.is_none() && !waiting.is_empty()) {
            while failure.is_none() && flying < DEPTH {
                let Some(index) = waiting.pop() else { break };
                let piece = &pieces[index];
                let rest = &mut buf[piece.at + piece.have..piece.at + piece.len];
                let from = offset + (piece.at + piece.have) as u64;
                let request = opcode::Read::new(fd, rest.as_mut_ptr(), rest.len() as u32)
                    .offset(from)
                    .build()
                    .user_data(index as u64);
                // SAFETY: the request names `rest`, part of `buf`, which is borrowed for this whole function, and no
                // request in flight names any byte of it: pieces are disjoint, and one is in `waiting` only
                // while it has none. `buf` is not touched before every request is done, and the function returns
                // no earlier than that, but for requests that the kernel has not taken and never will, as their ring is
                // closed; `file` is open for as long.
                match unsafe { ring.submission().push(&request) } {
                    Ok(()) => flying += 1,
                    Err(full) => failure = Some(io::Error::other(full)),
                }
            }
            if flying == 0 {
                break;
            }
            match ring.submit_and_wait(1) {
                Ok(_) => {}
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => {
                    failure.get_or_insert(e);
                    // The kernel still writes to the buffer for requests that it has taken: those are waited for in any
                    // case, here by looking, because asking fails. The others are not its business any more.
                    if flying <= ring.submission().len() {
                        break;
                    }
                    std::thread::sleep(Duration::from_millis(1));
                }
            }
            for done in ring.completion() {
                flying -= 1;
                let index = done.user_data() as usize;
                let piece = &mut pieces[index];
                match done.result() {
                    // Interrupted, or no room now.
                    code if code == -4 || code == -11 => waiting.push(index),
                    code if code < 0 => {
                        piece.over = true;
                        failure.get_or_insert_with(|| io::Error::from_raw_os_error(-code));
                    }
                    count => {
                        piece.have += count as usize;
                        // A direct read that ends between blocks has met the end of the file.
                        piece.over = piece.have >= piece.len || count % 4096 != 0 || count == 0;
                        if !piece.over {
                            waiting.push(index);
                        }
                    }
                }
            }
        }
        // What lies in front of the first gap.
        let mut whole = 0;
        for piece in &pieces {
            whole += piece.have;
            if piece.have < piece.len {
                break;
            }
        }
        match failure {
            Some(error) if whole == 0 => Err(error),
            _ => Ok(whole),
        }
    }
}

#[cfg(all(test, target_os = "linux", not(feature = "loom")))]
mod tests {
    use airllm_format::{FileSource, LayerSource, ReadMethod};

    #[test]
    fn reads_are_what_the_file_holds_up_to_its_end() {
        let queue = match super::shared() {
            Ok(queue) => queue,
            Err(why) => return println!("skipped: no io_uring here: {why}"),
        };
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x");
        let bytes: Vec<u8> = (0..21_000_001usize).map(|i| (i * 31 % 251) as u8).collect();
        std::fs::write(&path, &bytes).unwrap();
        let paths = [path.clone()];
        let source = FileSource::open_with(&paths, ReadMethod::Uring, Some(queue.clone())).unwrap();
        let file = std::fs::File::open(&path).unwrap();
        let mut slot = crate::arena::carve(&[32 << 20]).unwrap().remove(0).fill();
        // Straight from the queue: as much as there is, in pieces and less than one.
        for (offset, len) in
            [(0, 4096), (4096, 3 << 20), (8192, 20 << 20), (0, 32 << 20), (20_480_000, 1 << 20)]
        {
            let buf = &mut slot.bytes_mut()[..len];
            let count = queue.read_at(&file, offset as u64, buf).unwrap();
            assert_eq!(count, len.min(bytes.len() - offset));
            assert!(buf[..count] == bytes[offset..offset + count]);
        }
        assert_eq!(queue.read_at(&file, 32 << 20, slot.bytes_mut()).unwrap(), 0);
        // As a source reads, several threads at once, aligned or not.
        std::thread::scope(|scope| {
            for t in 0..3usize {
                let (source, bytes) = (&source, &bytes);
                scope.spawn(move || {
                    let mut slot = crate::arena::carve(&[8 << 20]).unwrap().remove(0).fill();
                    for turn in 0..4 {
                        let offset = (t * 4 + turn) * (1 << 20) + turn % 2;
                        let buf = &mut slot.bytes_mut()[..8 << 20];
                        source.read_at(0, offset as u64, buf).unwrap();
                        assert!(buf == &bytes[offset..offset + (8 << 20)]);
                    }
                });
            }
        });
        // Where the file system has no direct reads, those through the page cache.
        assert_ne!(source.method(), ReadMethod::Direct);
    }

    #[test]
    fn a_refusal_falls_back() {
        /// A system that forbids it.
        #[derive(Debug)]
        struct Forbidden;
        impl airllm_format::QueuedReads for Forbidden {
            fn read_at(&self, _: &std::fs::File, _: u64, _: &mut [u8]) -> std::io::Result<usize> {
                Err(std::io::ErrorKind::PermissionDenied.into())
            }
        }
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x");
        std::fs::write(&path, vec![7; 2 << 20]).unwrap();
        let queue = std::sync::Arc::new(Forbidden);
        let source =
            FileSource::open_with(std::slice::from_ref(&path), ReadMethod::Uring, Some(queue)).unwrap();
        let mut buf = vec![0; 2 << 20];
        source.read_at(0, 0, &mut buf).unwrap();
        assert!(buf.iter().all(|&byte| byte == 7));
        assert_ne!(source.method(), ReadMethod::Uring);
    }
}
