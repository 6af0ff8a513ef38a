//! Shards over two folders, of which one is slow: the bytes of one folder, from both in their shares.

#![allow(clippy::unwrap_used)]

mod common;

use airllm_format::shard::{Folders, ShardTag, ShardWriter, Spread, TensorSpec};
use airllm_format::{FaultSource, LayerSource, NumFormat, ReadMethod};
use airllm_stream::{Catalog, Error, Pipeline, SpreadSource, Tensor, TensorId, Unit, open_files};
use common::{Host, options};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

const ROWS: usize = 3000;
const COLS: usize = 1024;

/// Writes two shards of 12 MB, and says what streams of them.
fn write(folders: &Folders) -> Catalog {
    let mut catalog = Catalog::default();
    for unit in 0..2usize {
        let name = format!("layer.{unit}");
        let tag = ShardTag { unit: name.clone(), source: "cafe".into(), recipe: "source".into() };
        let spec = TensorSpec { name: "q".into(), format: NumFormat::F32, shape: vec![ROWS, COLS] };
        let mut writer =
            ShardWriter::create_in(folders, &format!("{name}.safetensors"), &tag, vec![spec]).unwrap();
        let number = |at: usize| ((at + unit * 77) as u32).wrapping_mul(2_654_435_761);
        let bytes: Vec<u8> = (0..ROWS * COLS).flat_map(|at| number(at).to_le_bytes()).collect();
        writer.write(&bytes).unwrap();
        let tensor = &writer.finish().unwrap().tensors[0];
        let checksum = airllm_format::shard::parse_checksum(&tensor.checksum);
        let (offset, format) = (tensor.offset, NumFormat::F32);
        let tensor =
            Tensor { name: "q".into(), file: unit, offset, format, rows: ROWS, cols: COLS, checksum };
        catalog.units.push(Unit { name, tensors: vec![tensor], on_demand: false });
        catalog.pass.push(TensorId { unit, tensor: 0 });
    }
    catalog
}

fn files(dir: &std::path::Path) -> Vec<PathBuf> {
    (0..2).map(|unit| dir.join(format!("layer.{unit}.safetensors"))).collect()
}

/// All that three passes lease.
fn stream(source: Arc<dyn LayerSource>, catalog: &Catalog) -> Vec<u8> {
    // Small slots: a stripe is a part of a turn.
    let options = options(vec![], 5, 1 << 20, 4);
    let device = Arc::new(Host::new(false, 0));
    let mut pipeline = Pipeline::start(device, source, catalog.clone(), &options).unwrap();
    let mut seen = Vec::new();
    for _ in 0..3 {
        for &id in &catalog.pass {
            pipeline
                .rows::<Error, _>(id, |rows| {
                    seen.extend_from_slice(rows.data);
                    Ok(())
                })
                .unwrap();
        }
    }
    seen
}

#[test]
fn two_folders_give_the_bytes_of_one_each_its_share() {
    let temp = tempfile::tempdir().unwrap();
    let one = Folders::one(&temp.path().join("one"));
    let catalog = write(&one);
    let plain = open_files(&files(one.first()), ReadMethod::Buffered).unwrap();
    let want = stream(Arc::new(plain), &catalog);
    assert_eq!(want.len(), 3 * 2 * ROWS * COLS * 4);

    let dirs = vec![temp.path().join("fast"), temp.path().join("slow")];
    let spread = Spread::by_rates(&[3.0, 1.0]).unwrap();
    let folders = Folders::spread(dirs, spread.clone()).unwrap();
    assert_eq!(write(&folders), catalog);
    for method in ReadMethod::ALL {
        let fast = open_files(&files(&folders.dirs()[0]), method).unwrap();
        let slow = open_files(&files(&folders.dirs()[1]), method).unwrap();
        // Slow now and then, and once it does not answer at first.
        let slow = FaultSource::new(slow).delay(3, Duration::from_millis(4)).fail_read(5);
        let source = SpreadSource::new(vec![Box::new(fast), Box::new(slow)], spread.clone(), 2).unwrap();
        let source = Arc::new(source);
        assert!(stream(source.clone(), &catalog) == want, "read by {method}");
        let read = source.read_by_drive();
        // Three quarters and one, but for the ends of the shards, what is read ahead and what was read twice.
        let share = read[0] as f64 / (read[0] + read[1]) as f64;
        assert!((0.70..0.80).contains(&share), "{read:?} by {method}");
    }
}

#[test]
fn parts_that_do_not_belong_together_are_refused() {
    let temp = tempfile::tempdir().unwrap();
    let spread = Spread::by_rates(&[1.0, 1.0]).unwrap();
    let folders =
        Folders::spread(vec![temp.path().join("a"), temp.path().join("b")], spread.clone()).unwrap();
    write(&folders);
    let part = |index: usize| -> Box<dyn LayerSource> {
        Box::new(open_files(&files(&folders.dirs()[index]), ReadMethod::Buffered).unwrap())
    };
    assert!(SpreadSource::new(vec![part(0)], spread.clone(), 1).is_err());
    let other = Spread::by_rates(&[5.0, 1.0]).unwrap();
    assert!(SpreadSource::new(vec![part(0), part(1)], other, 1).is_err());
    let source = SpreadSource::new(vec![part(0), part(1)], spread, 1).unwrap();
    let len = source.len(0);
    assert!(source.read_at(0, len, &mut [0; 4096]).is_err());
    assert!(source.read_at(2, 0, &mut [0; 1]).is_err());
    // Past the end by less than an alignment.
    let mut end = [7; 4200];
    source.read_at(0, len - 200, &mut end[..4200 - 105]).unwrap();
    assert!(end[200..4095].iter().all(|&byte| byte == 0));
    source.read_at(0, 0, &mut []).unwrap();
}
