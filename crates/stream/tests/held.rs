//! Weights at hand: what is held, what is fetched when it is met, and what is refused.
#![allow(clippy::unwrap_used)]

mod common;

use airllm_stream::{Catalog, Error, Fetch, Held, TensorId, Weights};
use common::{Host, content, model};
use std::cell::RefCell;
use std::ops::Range;
use std::rc::Rc;
use std::sync::Arc;

const PIECE: usize = 16 << 20;

/// What was fetched: the tensor, and which of its rows.
type Fetched = Rc<RefCell<Vec<(TensorId, Range<usize>)>>>;

/// Weights that are fetched from files in memory, and a log of it.
fn held(catalog: &Catalog, files: &Rc<Vec<Vec<u8>>>) -> (Held<'static, Host>, Fetched) {
    let log = Fetched::default();
    let (its, of, files) = (log.clone(), catalog.clone(), files.clone());
    let fetch = move |id: TensorId, rows: Range<usize>, out: &mut [u8]| -> Result<(), Error> {
        let row = of.get(id).unwrap().row_bytes();
        assert_eq!(out.len(), rows.len() * row, "room for the rows and nothing else");
        out.copy_from_slice(&content(&of, &files, id)[rows.start * row..rows.end * row]);
        its.borrow_mut().push((id, rows));
        Ok(())
    };
    (Held::new(Arc::new(Host::new(true, 3)), catalog.clone(), Box::new(fetch)), log)
}

/// All that a tensor leases, and how many pieces it came in.
fn lease(held: &mut Held<'_, Host>, id: TensorId, demand: bool) -> Result<(Vec<u8>, Vec<usize>), Error> {
    let (mut bytes, mut counts, mut next) = (Vec::new(), Vec::new(), 0);
    let take = |rows: airllm_stream::Rows<&[u8]>| {
        assert_eq!(rows.first, next, "pieces in order");
        next += rows.count;
        counts.push(rows.count);
        bytes.extend_from_slice(rows.data);
        Ok(())
    };
    if demand {
        held.demand::<Error, _>(id, take)?
    } else {
        held.rows::<Error, _>(id, take)?
    }
    Ok((bytes, counts))
}

fn gathered(held: &mut Held<'_, Host>, id: TensorId, rows: &[u32]) -> Result<Vec<u8>, Error> {
    let mut bytes = Vec::new();
    held.gather::<Error, _>(id, rows, |data| {
        bytes.extend_from_slice(data);
        Ok(())
    })?;
    Ok(bytes)
}

fn small() -> (Catalog, Rc<Vec<Vec<u8>>>) {
    let (catalog, files) = model(&[vec![(20, 50), (1, 50)], vec![(7, 16)]], true);
    (catalog, Rc::new(files))
}

const fn id(unit: usize, tensor: usize) -> TensorId {
    TensorId { unit, tensor }
}

#[test]
fn any_tensor_in_any_order_as_often_as_it_takes() {
    let (catalog, files) = small();
    let (mut held, log) = held(&catalog, &files);
    for tensor in [id(2, 0), id(1, 0), id(1, 0), id(0, 0), id(1, 1), id(2, 0)] {
        for demand in [false, true] {
            let (bytes, counts) = lease(&mut held, tensor, demand).unwrap();
            assert_eq!(bytes, content(&catalog, &files, tensor));
            assert_eq!(counts, [catalog.get(tensor).unwrap().rows]);
        }
    }
    assert_eq!(log.borrow().len(), 12, "what is not held is fetched each time");
}

#[test]
fn what_is_held_is_not_fetched() {
    let (catalog, files) = small();
    let (mut held, log) = held(&catalog, &files);
    held.load(id(1, 0)).unwrap();
    held.load(id(0, 0)).unwrap();
    assert_eq!(*log.borrow(), [(id(1, 0), 0..20), (id(0, 0), 0..97)]);
    assert!(held.holds(id(1, 0)) && !held.holds(id(1, 1)));
    for tensor in [id(1, 0), id(0, 0), id(1, 0)] {
        assert_eq!(lease(&mut held, tensor, false).unwrap().0, content(&catalog, &files, tensor));
    }
    let embed = content(&catalog, &files, id(0, 0));
    let row = |row: usize| embed[row * 132..][..132].to_vec();
    assert_eq!(gathered(&mut held, id(0, 0), &[96, 3, 3]).unwrap(), [row(96), row(3), row(3)].concat());
    assert_eq!(log.borrow().len(), 2);

    held.drop_tensor(id(1, 0));
    held.drop_tensor(id(2, 0));
    assert!(!held.holds(id(1, 0)) && held.holds(id(0, 0)));
    lease(&mut held, id(1, 0), false).unwrap();
    held.clear();
    assert!(!held.holds(id(0, 0)));
    assert_eq!(gathered(&mut held, id(0, 0), &[5, 0]).unwrap(), [row(5), row(0)].concat());
    // Single rows are fetched singly.
    assert_eq!(log.borrow()[2..], [(id(1, 0), 0..20), (id(0, 0), 5..6), (id(0, 0), 0..1)]);
    assert_eq!(gathered(&mut held, id(0, 0), &[]).unwrap(), [0u8; 0]);
}

#[test]
fn rows_of_another_size_take_the_place_of_a_tensor() {
    let (catalog, files) = small();
    let (mut held, log) = held(&catalog, &files);
    // 20 rows of 26 bytes instead of 200, as a narrower format has them.
    let narrow: Vec<u8> = (0..520).map(|i| (i % 251) as u8).collect();
    held.load(id(1, 0)).unwrap();
    held.put(id(1, 0), &narrow).unwrap();
    assert_eq!(lease(&mut held, id(1, 0), false).unwrap(), (narrow.clone(), vec![20]));
    let some = [&narrow[19 * 26..], &narrow[..26], &narrow[7 * 26..8 * 26]].concat();
    assert_eq!(gathered(&mut held, id(1, 0), &[19, 0, 7]).unwrap(), some);
    assert_eq!(log.borrow().len(), 1);
    held.load(id(1, 0)).unwrap();
    assert_eq!(lease(&mut held, id(1, 0), false).unwrap().0, content(&catalog, &files, id(1, 0)));
}

#[test]
fn long_tensors_come_in_pieces() {
    // 17 rows of 1 MiB each: a piece of 16 rows and one of the last. Rows of 6 MiB: two a piece. One row of
    // 20 MiB is never cut.
    let shapes = vec![(17, 1 << 18), (5, 3 << 19), (2, 5 << 20)];
    let (catalog, files) = model(&[shapes], false);
    let files = Rc::new(files);
    let (mut held, log) = held(&catalog, &files);
    for (tensor, expected) in [vec![16, 1], vec![2, 2, 1], vec![1, 1]].into_iter().enumerate() {
        let (bytes, counts) = lease(&mut held, id(1, tensor), false).unwrap();
        assert_eq!(counts, expected);
        assert!(bytes == content(&catalog, &files, id(1, tensor)));
        let row = catalog.get(id(1, tensor)).unwrap().row_bytes();
        assert!(expected[0] == 1 || expected[0] * row <= PIECE);
    }
    assert_eq!(log.borrow().len(), 7);
    // Held, it is one piece.
    held.load(id(1, 0)).unwrap();
    assert_eq!(lease(&mut held, id(1, 0), false).unwrap().1, [17]);
}

#[test]
fn what_is_refused() {
    let (catalog, files) = small();
    let (mut held, log) = held(&catalog, &files);
    let error = held.put(id(1, 0), &[0; 519]).unwrap_err().to_string();
    assert!(error.contains("t0") && error.contains("519 bytes") && error.contains("20 rows"), "{error}");
    assert!(!held.holds(id(1, 0)));
    for absent in [id(3, 0), id(1, 2)] {
        assert!(matches!(held.put(absent, &[0; 4]), Err(Error::Catalog(_))));
        assert!(matches!(held.load(absent), Err(Error::Catalog(_))));
        assert!(matches!(lease(&mut held, absent, false), Err(Error::Catalog(_))));
        assert!(matches!(gathered(&mut held, absent, &[0]), Err(Error::Catalog(_))));
    }
    for loaded in [false, true] {
        if loaded {
            held.load(id(0, 0)).unwrap();
        }
        match gathered(&mut held, id(0, 0), &[1, 97]) {
            Err(Error::Row { tensor, row: 97, rows: 97 }) => assert_eq!(tensor, "t0"),
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(*log.borrow(), [(id(0, 0), 1..2), (id(0, 0), 0..97)]);
}

#[test]
fn errors_pass_through() {
    let (catalog, files) = small();
    let (of, broken) = (catalog.clone(), Rc::new(RefCell::new(true)));
    let switch = broken.clone();
    let fetch: Box<Fetch<'static>> = Box::new(move |id, rows, out| {
        if *switch.borrow() {
            return Err(Error::Catalog("the disk is gone".to_owned()));
        }
        let row = of.get(id).unwrap().row_bytes();
        out.copy_from_slice(&content(&of, &files, id)[rows.start * row..rows.end * row]);
        Ok(())
    });
    let mut held = Held::new(Arc::new(Host::new(false, 0)), catalog, fetch);
    let gone = |error: Error| assert!(error.to_string().contains("the disk is gone"), "{error}");
    gone(held.load(id(1, 0)).unwrap_err());
    assert!(!held.holds(id(1, 0)));
    gone(lease(&mut held, id(1, 0), false).unwrap_err());
    gone(gathered(&mut held, id(1, 0), &[0]).unwrap_err());
    // What whoever leases says, and nothing of it stays.
    *broken.borrow_mut() = false;
    let stop = |_: airllm_stream::Rows<&[u8]>| Err(Error::Catalog("enough".to_owned()));
    let error = held.rows::<Error, _>(id(1, 0), stop).unwrap_err();
    assert!(error.to_string().contains("enough"), "{error}");
    assert_eq!(lease(&mut held, id(1, 0), false).unwrap().0.len(), 4000);
}
