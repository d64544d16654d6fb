//! Forms that changed between versions 14 and 22.

use super::Change;
use crate::error::Fault;
use crate::ir::{Array, Tensor, attribute};
use crate::kernels::strided::take_array;

impl Change<'_> {
    /// Rewrites the node to its form of version `to`.
    pub(super) fn beyond_13(&mut self, from: i64, to: i64) -> Result<(), Fault> {
        let crosses = |version: i64| from < version && version <= to;
        let op_type = self.graph.node(self.id).op_type.clone();
        match op_type.as_str() {
            "BatchNormalization" if crosses(14) => self.batch_normalization()?,
            "RoiAlign" if crosses(16) => {
                self.default("coordinate_transformation_mode", "output_half_pixel");
            }
            "ReduceMax" | "ReduceMin" | "ReduceMean" | "ReduceProd" | "ReduceL1" | "ReduceL2"
            | "ReduceLogSum" | "ReduceLogSumExp" | "ReduceSumSquare"
                if crosses(18) =>
            {
                self.ints_to_input("axes", 1);
            }
            "Split" if crosses(18) && self.graph.input(self.id, 1).is_none() => {
                let node = self.graph.node_mut(self.id);
                node.attributes.push(attribute::int("num_outputs", node.outputs as i64));
            }
            "GridSample" if crosses(20) => self.grid_sample(),
            "DFT" if crosses(20) => {
                let axis = self.take("axis").and_then(|a| a.i).unwrap_or(1);
                self.input("axis", 2, Array::scalar(axis));
            }
            "GroupNormalization" if crosses(21) => self.group_normalization()?,
            _ => {}
        }
        Ok(())
    }

    /// Gives a string attribute the value that was its meaning when it did not exist or had another default.
    fn default(&mut self, name: &str, value: &str) {
        let attributes = &mut self.graph.node_mut(self.id).attributes;
        if attributes.iter().all(|a| a.name.as_deref() != Some(name)) {
            attributes.push(attribute::string(name, value));
        }
    }

    /// Running statistics became outputs of training alone.
    fn batch_normalization(&mut self) -> Result<(), Fault> {
        let outputs = self.graph.outputs_of(self.id);
        let used = |v: &crate::ir::ValueId| !self.graph.uses(*v).is_empty() || self.graph.is_output(*v);
        if outputs.iter().skip(1).flatten().any(used) {
            return Err("its statistics have no later form".into());
        }
        if outputs.len() > 1 {
            let (node, inputs) = (self.graph.node(self.id).clone(), self.graph.inputs_of(self.id));
            self.graph.remove_node(self.id);
            outputs.iter().skip(1).flatten().for_each(|&v| self.graph.remove_value_if_dead(v));
            self.id = self.graph.add_node(node, &inputs, &outputs[..1]);
        }
        Ok(())
    }

    /// The modes of GridSample lost their `bi`.
    fn grid_sample(&mut self) {
        for a in &mut self.graph.node_mut(self.id).attributes {
            match (a.name.as_deref(), a.s.as_deref()) {
                (Some("mode"), Some(b"bilinear")) => *a = attribute::string("mode", "linear"),
                (Some("mode"), Some(b"bicubic")) => *a = attribute::string("mode", "cubic"),
                _ => {}
            }
        }
    }

    /// Scale and bias are by channel from version 21 on, by group before.
    fn group_normalization(&mut self) -> Result<(), Fault> {
        let x = self.graph.input(self.id, 0).and_then(|v| self.graph.ty(v)?.dim(1)?.known());
        for slot in [1, 2] {
            let constant = self.graph.constant_input(self.id, slot);
            let (Some(channels), Some(tensor)) = (x, constant) else {
                return Err("scale and bias by group have no later form unless they are constant".into());
            };
            let array = tensor.array()?;
            let groups = array.len().max(1);
            if channels % groups != 0 {
                crate::fail!("{channels} channels do not split into {groups} groups");
            }
            let each = channels / groups;
            let groups_of: Vec<usize> = (0..channels).map(|c| c / each).collect();
            let repeated = take_array(&array, 0, &groups_of)?;
            let name = format!("{}_by_channel", self.label());
            let value = self.graph.add_constant(&name, Tensor::from_array(&repeated));
            self.graph.rewire(self.id, slot, Some(value));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
