//! The device without arithmetic: the same checks as the others, and a log.

#![allow(clippy::unwrap_used, reason = "what fails here is the test")]

use airllm_format::NumFormat;
use airllm_kernels::{Columns, Cpu, Matrix, Memory, Ops, Tokens, Trace, conformance};

conformance!(trace, Trace::new(), refusals empty);
conformance!(discrete, Trace::discrete(), refusals empty);

fn some_work<D: Ops>(device: &D) {
    let data = vec![0u8; 5 * NumFormat::Q4.row_bytes(100)];
    let mut weights = device.alloc(data.len()).unwrap();
    device.write(&mut weights, 0, &data).unwrap();
    let x = device.alloc(3 * 100 * 4).unwrap();
    let mut y = device.alloc(3 * 8 * 4).unwrap();
    let data = device.view(&weights, 0..data.len()).unwrap();
    let w = Matrix { data, format: NumFormat::Q4, rows: 5, cols: 100 };
    device.matmul(w, &x, Tokens::few(3), &mut y, Columns { stride: 8, first: 3 }).unwrap();
    device.add(&mut y, &x, 24).unwrap();
}

#[test]
fn log_names_every_call() {
    let device = Trace::new();
    some_work(&device);
    let log = device.take_log();
    let verbs: Vec<&str> = log.iter().map(|e| e.verb).collect();
    assert_eq!(verbs, ["alloc", "write", "alloc", "alloc", "matmul", "add"]);
    let matmul = log[4];
    assert_eq!(matmul.matrix, Some((5, 100, NumFormat::Q4)));
    assert_eq!((matmul.n, matmul.flops), (3, 2 * 3 * 5 * 100));
    let row = NumFormat::Q4.row_bytes(100) as u64;
    assert_eq!(matmul.bytes, 5 * row + 3 * 100 * 4 + 3 * 5 * 4);
    assert!(device.log().is_empty());
}

#[test]
fn declares_the_work_of_the_cpu() {
    let (trace, cpu) = (Trace::new(), Cpu::new(1));
    some_work(&trace);
    some_work(&cpu);
    assert_eq!(trace.work(), cpu.work());
    assert_eq!(trace.work().calls, 2);
}

#[test]
fn refused_calls_are_not_logged() {
    let device = Trace::new();
    let mut y = device.alloc(8).unwrap();
    assert!(device.write(&mut y, 5, &[0; 4]).is_err());
    assert!(device.read(&y, usize::MAX, &mut [0; 4]).is_err());
    assert!(device.view(&y, 5..9).is_err());
    #[expect(clippy::reversed_empty_ranges, reason = "it has to be refused")]
    let reversed = 5..3;
    assert!(device.view(&y, reversed).is_err());
    assert_eq!(device.log().len(), 1);
    assert_eq!(device.work().calls, 0);
}

#[test]
fn reads_back_zeros_and_has_memory_as_told() {
    let device = Trace::new();
    let y = device.alloc(8).unwrap();
    let mut out = [9u8; 8];
    device.read(&y, 0, &mut out).unwrap();
    assert_eq!(out, [0; 8]);
    assert_eq!(device.host_view(&out).map(|v| v.bytes), Some(8));
    assert_eq!(Trace::discrete().host_view(&out), None);
}
