//! The operators: one declaration each, in the file of its family.
//!
//! An [`OpDef`] says from which opset a form of an operator holds and how to read its attributes; the [`Op`] that it
//! makes knows types, float meaning and quantization rule. Adding an operator to a family touches that file; a new
//! family adds one line to `families!`.

use std::collections::BTreeSet;
use std::collections::HashMap;
use std::sync::{Arc, LazyLock};

use crate::error::Fault;
use crate::fail;
use crate::ir::{Attribute, Tensor};
pub use crate::ir::{Control, Fact, Gradient, Op, Operands, Rule, Run, Runtime};

/// The ONNX domain, spelt as the empty string.
pub const ONNX: &str = "";

/// One form of an operator.
pub struct OpDef {
    /// Operator domain; `""` is ONNX.
    pub domain: &'static str,
    /// Operator type.
    pub name: &'static str,
    /// The first opset version in which this form holds.
    pub since: i64,
    /// Reads the attributes.
    pub parse: fn(&mut Attrs) -> Result<Arc<dyn Op>, Fault>,
}

macro_rules! families {
    ($($family:ident),* $(,)?) => {
        $(pub mod $family;)*
        /// Every operator, by family.
        pub static FAMILIES: &[(&str, &[OpDef])] = &[$((stringify!($family), $family::OPS)),*];
    };
}

families! {
    activation, arithmetic, attention, cast, compare, control, conv, detection, determinant, einsum, flex,
    gather, gemm, generate, image, join, language, loss, mask, ml, norm, normalize, pad, place, pool,
    qlinear, qoperator,
    quantize, recurrent, reduce, resize, sampling, scatter, select, sequence, shape, softmax, spectral,
    text, training, unary,
}

mod elementwise;
mod gradient;
pub mod integer;
pub mod operand;
mod ready;
pub mod slots;
pub mod window;

#[cfg(test)]
mod backend_tests;

/// The form of an operator in force at this opset version.
pub fn find(domain: &str, name: &str, version: i64) -> Option<&'static OpDef> {
    /// The forms of each operator.
    static FORMS: LazyLock<HashMap<(&str, &str), Vec<&OpDef>>> = LazyLock::new(|| {
        let mut forms: HashMap<_, Vec<_>> = HashMap::new();
        for def in FAMILIES.iter().flat_map(|(_, defs)| defs.iter()) {
            forms.entry((def.domain, def.name)).or_default().push(def);
        }
        forms
    });
    let domain = if domain == "ai.onnx" { ONNX } else { domain };
    let forms = FORMS.get(&(domain, name))?;
    forms.iter().copied().filter(|def| def.since <= version).max_by_key(|def| def.since)
}

/// The attributes of one node, read by name; what was never asked for is noticed.
pub struct Attrs<'a> {
    attributes: &'a [Attribute],
    version: i64,
    inputs: usize,
    outputs: usize,
    read: BTreeSet<&'a str>,
}

impl<'a> Attrs<'a> {
    /// The attributes of a node with this many input and output slots, at this opset version of its domain.
    pub fn new(attributes: &'a [Attribute], version: i64, inputs: usize, outputs: usize) -> Self {
        Self { attributes, version, inputs, outputs, read: BTreeSet::new() }
    }

    /// The opset version in force.
    pub fn version(&self) -> i64 {
        self.version
    }

    /// Number of input slots of the node.
    pub fn inputs(&self) -> usize {
        self.inputs
    }

    /// Number of output slots of the node.
    pub fn outputs(&self) -> usize {
        self.outputs
    }

    /// The names that no reader asked for.
    pub fn unread(&self) -> Vec<&'a str> {
        self.attributes.iter().filter_map(|a| a.name.as_deref()).filter(|n| !self.read.contains(n)).collect()
    }

    fn get(&mut self, name: &str) -> Result<Option<&'a Attribute>, Fault> {
        let Some(found) = self.attributes.iter().find(|a| a.name.as_deref() == Some(name)) else {
            return Ok(None);
        };
        self.read.extend(found.name.as_deref());
        if found.ref_attr_name.as_ref().is_some_and(|n| !n.is_empty()) {
            fail!("attribute {name} refers to an attribute of a function");
        }
        Ok(Some(found))
    }

    fn field<T>(
        &mut self,
        name: &str,
        field: impl Fn(&'a Attribute) -> Option<T>,
    ) -> Result<Option<T>, Fault> {
        match self.get(name)? {
            None => Ok(None),
            Some(a) => {
                field(a).map(Some).ok_or_else(|| format!("attribute {name} has the wrong type").into())
            }
        }
    }

    /// An integer that may be missing.
    pub fn opt_int(&mut self, name: &str) -> Result<Option<i64>, Fault> {
        self.field(name, |a| a.i)
    }

    /// An integer with a default.
    pub fn int(&mut self, name: &str, default: i64) -> Result<i64, Fault> {
        Ok(self.opt_int(name)?.unwrap_or(default))
    }

    /// An integer used as a truth value.
    pub fn flag(&mut self, name: &str, default: bool) -> Result<bool, Fault> {
        Ok(self.int(name, default.into())? != 0)
    }

    /// A real number that may be missing.
    pub fn opt_float(&mut self, name: &str) -> Result<Option<f32>, Fault> {
        self.field(name, |a| a.f)
    }

    /// A real number with a default.
    pub fn float(&mut self, name: &str, default: f32) -> Result<f32, Fault> {
        Ok(self.opt_float(name)?.unwrap_or(default))
    }

    /// A list of integers that may be missing.
    pub fn opt_ints(&mut self, name: &str) -> Result<Option<Vec<i64>>, Fault> {
        self.field(name, |a| Some(a.ints.clone()))
    }

    /// A list of real numbers that may be missing.
    pub fn opt_floats(&mut self, name: &str) -> Result<Option<Vec<f32>>, Fault> {
        self.field(name, |a| Some(a.floats.clone()))
    }

    /// A string that may be missing.
    pub fn opt_string(&mut self, name: &str) -> Result<Option<String>, Fault> {
        self.field(name, |a| a.s.as_ref().and_then(|s| String::from_utf8(s.to_vec()).ok()))
    }

    /// A string with a default.
    pub fn string(&mut self, name: &str, default: &str) -> Result<String, Fault> {
        Ok(self.opt_string(name)?.unwrap_or_else(|| default.into()))
    }

    /// A list of strings that may be missing.
    pub fn opt_strings(&mut self, name: &str) -> Result<Option<Vec<String>>, Fault> {
        self.field(name, |a| a.strings.iter().map(|s| String::from_utf8(s.to_vec()).ok()).collect())
    }

    /// A tensor that may be missing.
    pub fn opt_tensor(&mut self, name: &str) -> Result<Option<Tensor>, Fault> {
        match self.field(name, |a| a.t.as_ref())? {
            None => Ok(None),
            Some(proto) => Tensor::from_proto(proto.clone(), None).map(Some),
        }
    }

    /// Notes that an attribute is known whose value decides nothing here; is it there?
    pub fn note(&mut self, name: &str) -> Result<bool, Fault> {
        Ok(self.get(name)?.is_some())
    }

    /// Notes that the graph-valued attribute is known; the graph itself is the node's.
    pub fn body(&mut self, name: &str) -> Result<(), Fault> {
        match self.get(name)? {
            Some(_) => Ok(()),
            None => Err(format!("attribute {name} is missing").into()),
        }
    }
}
