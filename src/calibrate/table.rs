//! Calibration tables: what was seen of each value, as text. Tables of parts of the samples merge to the table of all of
//! them, byte for byte, so that machines can share the work.
//!
//! ```json
//! {
//!   "format": "qonnx calibration 1",
//!   "model": "5c7fa31945e70bd6",              the first digits of the SHA-256 of the model's file
//!   "samples": { "0": "e1f0…", "1": "…" },    by place in the data: the first digits of the SHA-256 of its tensors
//!   "values": { "relu_3": { "batches": 2, "highest": [5.9, 0], "histogram": { … } } }
//! }
//! ```
//!
//! Values are named as in the graph after the passes. Of a histogram there are `exponent` k, the `extremes`, the number of
//! `zeros`, `nan`, `infinite` and `huge` (1e30 and more) samples, and runs of `bins`: the place of the first bin, then
//! counts. The documentation of `Histogram` says where the bins lie.

use std::collections::BTreeMap;
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::histogram::{Histogram, MOST, Stored};
use super::observer::{Observer, Observers};
use crate::error::{Error, Fault};
use crate::fail;
use crate::ir::{Graph, ValueId};

/// What such a file says first.
const FORMAT: &str = "qonnx calibration 1";

/// What was seen of the values of a model.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Table {
    format: String,
    /// The first 16 hexadecimal digits of the SHA-256 of the model's file.
    pub model: String,
    /// The samples by their place in the data, each as the first digits of a SHA-256.
    pub samples: BTreeMap<usize, String>,
    values: BTreeMap<String, Entry>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Entry {
    batches: u64,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    highest: Option<(f32, usize)>,
    histogram: Stored,
}

impl Table {
    /// What observers saw of the values of this graph.
    pub fn new(
        model: &str,
        samples: BTreeMap<usize, String>,
        graph: &Graph,
        seen: &Observers<ValueId>,
    ) -> Self {
        let entry = |(id, o): (ValueId, &Observer)| {
            let histogram = Stored::from(&o.histogram);
            (graph.name(id).to_string(), Entry { batches: o.batches, highest: o.highest, histogram })
        };
        let values = seen.iter().map(entry).collect();
        Self { format: FORMAT.into(), model: model.into(), samples, values }
    }

    /// Parses a table.
    pub fn parse(text: &str) -> Result<Self, Fault> {
        let table: Self =
            serde_json::from_str(text).map_err(|e| Fault::new(format!("no calibration table: {e}")))?;
        if table.format != FORMAT {
            fail!("its format is `{}`, not `{FORMAT}`", table.format);
        }
        Ok(table)
    }

    /// Reads a table.
    pub fn read(path: &Path) -> Result<Self, Error> {
        let text = std::fs::read_to_string(path)
            .map_err(|e| Fault::new(format!("cannot be read: {e}")).at(path.display()))?;
        Self::parse(&text).map_err(|f| f.at(path.display()))
    }

    /// As text: a line a value.
    pub fn text(&self) -> Result<String, Fault> {
        let block = |lines: Vec<String>| match lines.is_empty() {
            true => "{}".to_string(),
            false => format!("{{\n{}\n  }}", lines.join(",\n")),
        };
        let samples =
            self.samples.iter().map(|(i, digest)| line(&i.to_string(), digest)).collect::<Result<_, _>>()?;
        let values = self.values.iter().map(|(name, entry)| line(name, entry)).collect::<Result<_, _>>()?;
        Ok(format!(
            "{{\n  \"format\": \"{FORMAT}\",\n  \"model\": \"{}\",\n  \"samples\": {},\n  \"values\": {}\n}}\n",
            self.model,
            block(samples),
            block(values)
        ))
    }

    /// Number of values.
    pub fn len(&self) -> usize {
        self.values.len()
    }

    /// Are there none?
    pub fn is_empty(&self) -> bool {
        self.values.is_empty()
    }

    /// Takes in a table of other samples of the same model.
    pub fn merge(&mut self, other: &Self) -> Result<(), Fault> {
        if other.model != self.model {
            fail!("the tables are of two models, {} and {}", self.model, other.model);
        }
        if let Some(place) = other.samples.keys().find(|place| self.samples.contains_key(place)) {
            fail!("sample {place} is in more than one table");
        }
        if !self.values.keys().eq(other.values.keys()) {
            fail!("the tables have different values: were they made by different versions?");
        }
        for (name, theirs) in &other.values {
            let at = |f: Fault| Fault::new(format!("`{name}`: {f}"));
            let Some(own) = self.values.get_mut(name) else { continue };
            let mut observer = own.observer().map_err(at)?;
            observer.merge(&theirs.observer().map_err(at)?);
            *own = Entry {
                batches: observer.batches,
                highest: observer.highest,
                histogram: Stored::from(&observer.histogram),
            };
        }
        self.samples.extend(other.samples.iter().map(|(i, d)| (*i, d.clone())));
        Ok(())
    }

    /// What was seen of those of these values that the table has.
    pub fn observers(&self, graph: &Graph, values: &[ValueId]) -> Result<Observers<ValueId>, Fault> {
        let mut seen = Observers::watching(values.iter().copied());
        for &value in values {
            if let Some(entry) = self.values.get(graph.name(value)) {
                let observer =
                    entry.observer().map_err(|f| Fault::new(format!("`{}`: {f}", graph.name(value))))?;
                seen.put(value, observer);
            }
        }
        Ok(seen)
    }
}

impl Entry {
    fn observer(&self) -> Result<Observer, Fault> {
        let histogram = Histogram::try_from(&self.histogram)?;
        if self.batches > MOST {
            fail!("there are too many batches");
        }
        Ok(Observer { histogram, batches: self.batches, highest: self.highest })
    }
}

/// A name and what it stands for.
fn line(name: &str, value: &impl Serialize) -> Result<String, Fault> {
    let json = |e: serde_json::Error| Fault::new(format!("cannot be written: {e}"));
    let (name, value) =
        (serde_json::to_string(name).map_err(json)?, serde_json::to_string(value).map_err(json)?);
    Ok(format!("    {name}: {value}"))
}
