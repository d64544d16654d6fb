use proptest::prelude::*;

use super::*;

/// Element by element, by the definition.
fn naive(source: &[u32], view: &View) -> Vec<u32> {
    let mut positions = vec![view.offset];
    for (&extent, &stride) in view.shape.iter().zip(&view.strides) {
        positions =
            positions.iter().flat_map(|&p| (0..extent as isize).map(move |i| p + i * stride)).collect();
    }
    positions.into_iter().map(|p| source[p as usize]).collect()
}

fn counting(n: usize) -> Vec<u32> {
    (0..n as u32).collect()
}

#[test]
fn transposition_in_tiles() {
    let source = counting(3 * 37 * 21);
    for order in [[0, 2, 1], [2, 0, 1], [2, 1, 0], [1, 0, 2]] {
        let view = View::new(&[3, 37, 21]).unwrap().permuted(&order).unwrap();
        assert_eq!(read(&source, &view).unwrap(), naive(&source, &view), "{order:?}");
    }
}

#[test]
fn steps_backwards_and_repeats() {
    let source = counting(12);
    let view = View::new(&[3, 4]).unwrap().stepped(1, 3, -2, 2).unwrap();
    assert_eq!(read(&source, &view).unwrap(), [3, 1, 7, 5, 11, 9]);
    let view = View::new(&[2, 1]).unwrap().broadcast(&[2, 2, 3]).unwrap();
    assert_eq!(read(&[7, 8], &view).unwrap(), [7, 7, 7, 8, 8, 8, 7, 7, 7, 8, 8, 8]);
}

#[test]
fn views_that_leave_the_buffer_are_faults() {
    assert!(View::new(&[4]).unwrap().stepped(0, 2, 1, 3).is_err());
    assert!(View::new(&[4]).unwrap().stepped(0, 0, -1, 2).is_err());
    assert!(View::new(&[4]).unwrap().permuted(&[1]).is_err());
    assert!(View::new(&[2, 3]).unwrap().broadcast(&[2, 4]).is_err());
    assert!(read(&counting(5), &View::new(&[2, 3]).unwrap()).is_err());
    assert!(take(&counting(6), [1, 2, 3], &[2]).is_err());
    assert!((read(&counting(0), &View::new(&[2, 0]).unwrap()).unwrap()).is_empty());
}

#[test]
fn taking_rows() {
    assert_eq!(take(&counting(8), [2, 2, 2], &[1, 1, 0]).unwrap(), [2, 3, 2, 3, 0, 1, 6, 7, 6, 7, 4, 5]);
}

proptest! {
    #[test]
    fn any_view_reads_like_the_definition(
        shape in prop::collection::vec(1usize..20, 1..5),
        order in Just((0..5usize).collect::<Vec<_>>()).prop_shuffle(),
        axis in 0usize..5, backwards: bool, repeat in 1usize..4,
    ) {
        let rank = shape.len();
        let order: Vec<usize> = order.into_iter().filter(|&a| a < rank).collect();
        let source = counting(shape.iter().product());
        let axis = axis % rank;
        let view = View::new(&shape).unwrap().permuted(&order).unwrap();
        let extent = view.shape()[axis];
        let view = if backwards {
            view.stepped(axis, extent - 1, -1, extent).unwrap()
        } else {
            view.stepped(axis, 0, 2, extent.div_ceil(2)).unwrap()
        };
        let mut wide = vec![repeat];
        wide.extend(view.shape());
        let view = view.broadcast(&wide).unwrap();
        prop_assert_eq!(read(&source, &view).unwrap(), naive(&source, &view));
    }
}
