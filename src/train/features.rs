//! Values inside the network by which the student is held to the teacher, besides the outputs: with few samples the
//! outputs alone say little about so many weights (Romero et al. 2015, <https://arxiv.org/abs/1412.6550>; the places are
//! those of Li et al. 2021, BRECQ, <https://arxiv.org/abs/2102.05426>: where one value alone carries everything on).

use std::collections::{BTreeMap, BTreeSet};

use crate::error::Error;
use crate::ir::{Graph, ValueId, schedule};

/// So many values at most, evenly over the depth.
const FEATURES: usize = 12;

/// The values that both graphs compute and that alone lead from what is before them to what is behind.
pub fn features(teacher: &Graph, student: &Graph) -> Result<Vec<ValueId>, Error> {
    let order = schedule(teacher).map_err(|f| f.at("scheduling"))?;
    let mut varying: BTreeSet<ValueId> = teacher.inputs.iter().copied().collect();
    let mut open: BTreeMap<ValueId, usize> = BTreeMap::new();
    let readers = |value: ValueId| teacher.uses(value).len() + usize::from(teacher.is_output(value));
    open.extend(teacher.inputs.iter().map(|&v| (v, readers(v))));
    let mut found = Vec::new();
    for id in order {
        let read: Vec<ValueId> =
            teacher.inputs_of(id).into_iter().flatten().chain(teacher.captures_of(id)).collect();
        if !read.iter().any(|v| varying.contains(v)) {
            continue;
        }
        for value in read {
            if let Some(left) = open.get_mut(&value) {
                *left = left.saturating_sub(1);
            }
        }
        let outputs: Vec<ValueId> = teacher.outputs_of(id).into_iter().flatten().collect();
        varying.extend(outputs.iter().copied());
        open.extend(outputs.into_iter().map(|v| (v, readers(v))));
        open.retain(|_, left| *left > 0);
        let float = |value| teacher.ty(value).is_some_and(|t| t.dtype.is_float());
        if let [(&only, _)] = open.iter().collect::<Vec<_>>()[..]
            && float(only)
            && !teacher.is_output(only)
            && student.has_still(only, teacher)
            && student.producer(only).is_some()
            && found.last() != Some(&only)
        {
            found.push(only);
        }
    }
    let count = found.len().min(FEATURES);
    Ok((0..count).map(|i| found[(i + 1) * found.len() / count - 1]).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::onnx::{import, text};

    fn names(body: &str) -> Vec<String> {
        let text = format!("<ir_version: 8, opset_import: [\"\" : 17]>\n{body}");
        let mut model = import(text::parse(&text).unwrap(), &|_| Err("no external data".into())).unwrap();
        crate::passes::infer(&mut model.graph);
        let graph = &model.graph;
        let found = features(graph, graph).unwrap();
        found.into_iter().map(|v| graph.name(v).to_string()).collect()
    }

    #[test]
    fn what_a_branch_goes_around_is_no_cut() {
        let found = names(
            "g (float[1,4] x) => (float[1,4] y) < float[4,4] w = random(1, -1.0, 1.0) > {
               a = MatMul (x, w) b = Relu (a) c = Sigmoid (b) d = Mul (b, c) k = Exp (w) e = MatMul (d, k) y = Tanh (e)
             }",
        );
        assert_eq!(found, ["a", "b", "d", "e"]);
    }

    #[test]
    fn a_value_that_is_kept_for_later_leaves_no_cut() {
        assert_eq!(
            names("g (float[4] x) => (float[4] y) { a = Relu (x) b = Exp (a) y = Add (b, x) }"),
            [""; 0]
        );
    }

    #[test]
    fn many_are_thinned_out() {
        let chain: String = (0..50).map(|i| format!("v{} = Relu (v{i}) ", i + 1)).collect();
        let found = names(&format!("g (float[4] v0) => (float[4] y) {{ {chain} y = Exp (v50) }}"));
        assert_eq!((found.len(), found.last().unwrap().as_str()), (FEATURES, "v50"));
    }
}
