//! An interrupted measurement, and the file it leaves.

use super::sensitivity::{Branch, Found};
use super::*;
use crate::checkpoint::{Checkpoint, Form};
use crate::progress::Meter;
use crate::{Cancel, Progress, Stage, lift};
use airllm_format::{Bits, NumFormat, Sensitivity, WidthError};
use airllm_stream::TensorId;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

fn run(
    checkpoint: &Checkpoint,
    keep: Option<Keep>,
    stop_after: Option<u64>,
) -> (crate::Result<Sensitivity>, u64) {
    let Form::Published(repo) = checkpoint.form() else { panic!("a checkpoint") };
    let config = checkpoint.config();
    let text = CalibrationText::default();
    let samples = Samples::of(&text, &checkpoint.tokenizer().unwrap(), Some(64), 256).unwrap();
    let plans = lift::units(repo, config, Bits::Source).unwrap();
    let cancel = Cancel::new();
    let mut layers = Layers::new(repo, config, plans, (2, samples.context), (2, MEMORY), &cancel).unwrap();
    let (told, resumed) = (AtomicU64::new(0), Arc::new(AtomicU64::new(0)));
    let (stop, seen) = (cancel.clone(), resumed.clone());
    let report = move |progress: &Progress<'_>| {
        seen.store(progress.resumed, Ordering::Relaxed);
        if Some(told.fetch_add(1, Ordering::Relaxed) + 1) == stop_after {
            stop.stop();
        }
    };
    let done = measure(&mut layers, &samples, keep, &mut Meter::new(Stage::Measure, 1, &report));
    (done, resumed.load(Ordering::Relaxed))
}

#[test]
fn an_interrupted_measurement_goes_on() {
    let demo = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../../assets/demo-model/model"));
    let checkpoint = Checkpoint::open(demo, None).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("demo.state");
    let whole = run(&checkpoint, None, None).0.unwrap();
    assert_eq!(whole.tensors.len(), 1 + 5 * 7);

    let keep = || Some(Keep::new(path.clone(), Duration::ZERO));
    let (stopped, _) = run(&checkpoint, keep(), Some(2));
    assert!(matches!(stopped, Err(crate::Error::Interrupted)), "{stopped:?}");
    let state = keep().unwrap().read().unwrap();
    assert_eq!(state.layers, 2);
    let (again, resumed) = run(&checkpoint, keep(), None);
    assert_eq!(again.unwrap(), whole);
    assert!(resumed > 0);
    assert!(!path.exists(), "what is done needs no state");
}

#[test]
fn a_damaged_state_is_not_taken() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("x.state");
    let mut keep = Keep::new(path.clone(), Duration::ZERO);
    assert!(keep.read().is_none());
    let id = TensorId { unit: 1, tensor: 2 };
    let branch = Branch { ids: vec![id], x: vec![1.0, -2.5], output: 0.25 };
    let widths = vec![WidthError { format: NumFormat::Q4, bytes: 16, error: 0.125 }];
    let found = Found { id, floor: NumFormat::Q2, format: NumFormat::Q4, widths, share: 3.0 };
    let together = [(NumFormat::Q3, vec![4.0, 5.0])];
    keep.write(3, &[7.0, 8.0, 9.0], &[branch], &together, &[found]).unwrap();
    let state = keep.read().unwrap();
    assert_eq!((state.layers, &state.x[..]), (3, &[7.0, 8.0, 9.0][..]));
    assert_eq!((state.branches[0].ids[0], &state.branches[0].x[..]), (id, &[1.0, -2.5][..]));
    assert_eq!((state.branches[0].output, state.found[0].share), (0.25, 3.0));
    assert_eq!(state.together, together);
    assert_eq!(
        (state.found[0].id, state.found[0].format, state.found[0].widths[0].error),
        (id, NumFormat::Q4, 0.125)
    );

    let bytes = std::fs::read(&path).unwrap();
    for at in (0..bytes.len()).step_by(7) {
        let mut damaged = bytes.clone();
        damaged[at] ^= 0x10;
        std::fs::write(&path, &damaged).unwrap();
        assert!(keep.read().is_none(), "byte {at}");
    }
    for len in [0, 1, bytes.len() / 2, bytes.len() - 1] {
        std::fs::write(&path, &bytes[..len]).unwrap();
        assert!(keep.read().is_none(), "{len} bytes");
    }
}
