//! Strings: StringConcat, StringSplit, StringNormalizer, RegexFullMatch, and TfIdfVectorizer, which counts runs of words or numbers.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use super::elementwise::broadcast_type;
use super::slots::{known, required};
use super::{Attrs, Fact, ONNX, Op, OpDef};
use crate::error::Fault;
use crate::fail;
use crate::ir::{Array, DType, Dim, TensorType};
use crate::kernels::broadcast::zip;
use crate::kernels::regex::Regex;

/// The operators of this family.
pub const OPS: &[OpDef] = &[
    OpDef { domain: ONNX, name: "StringConcat", since: 20, parse: |_| Ok(Arc::new(Join)) },
    OpDef { domain: ONNX, name: "StringSplit", since: 20, parse: Split::parse },
    OpDef { domain: ONNX, name: "StringNormalizer", since: 10, parse: Normalizer::parse },
    OpDef { domain: ONNX, name: "RegexFullMatch", since: 20, parse: FullMatch::parse },
    OpDef { domain: ONNX, name: "TfIdfVectorizer", since: 9, parse: Vectorizer::parse },
];

/// StringConcat: the second string behind the first.
#[derive(Debug)]
pub struct Join;

impl Op for Join {
    fn infer(&self, inputs: &[Option<Fact>]) -> Result<Vec<Option<TensorType>>, Fault> {
        broadcast_type(Some(DType::Str), inputs)
    }

    fn float(&self, inputs: &[Option<Array>]) -> Result<Vec<Array>, Fault> {
        let (a, b) = (required(inputs, 0)?, required(inputs, 1)?);
        let operand = |x: &'_ Array| -> Result<Vec<String>, Fault> { Ok(x.slice::<String>()?.to_vec()) };
        let (x, y) = (operand(a)?, operand(b)?);
        let (shape, joined) = zip((&x[..], a.shape()), (&y[..], b.shape()), |x, y| format!("{x}{y}"))?;
        Ok(vec![Array::new(&shape, joined)?])
    }
}

/// [StringSplit](https://onnx.ai/onnx/operators/onnx__StringSplit.html): the parts of each string along a new axis, and how
/// many there are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Split {
    /// What stands between the parts; `None`: any white space.
    pub delimiter: Option<String>,
    /// How often a string is split at most.
    pub maxsplit: Option<usize>,
}

impl Split {
    fn parse(attrs: &mut Attrs) -> Result<Arc<dyn Op>, Fault> {
        let maxsplit = attrs.opt_int("maxsplit")?.and_then(|n| usize::try_from(n).ok());
        Ok(Arc::new(Self { delimiter: attrs.opt_string("delimiter")?.filter(|d| !d.is_empty()), maxsplit }))
    }

    fn parts(&self, text: &str) -> Vec<String> {
        let most = self.maxsplit.unwrap_or(usize::MAX - 1) + 1;
        match &self.delimiter {
            Some(delimiter) => text.splitn(most, delimiter.as_str()).map(String::from).collect(),
            None => {
                let (mut parts, mut rest) = (Vec::new(), text.trim_start());
                while !rest.is_empty() {
                    let end = rest.find(char::is_whitespace).filter(|_| parts.len() + 1 < most);
                    let (part, left) = rest.split_at(end.unwrap_or(rest.len()));
                    parts.push(part.to_string());
                    rest = left.trim_start();
                }
                if let Some(last) = parts.last_mut() {
                    last.truncate(last.trim_end().len());
                }
                parts
            }
        }
    }
}

impl Op for Split {
    fn infer(&self, inputs: &[Option<Fact>]) -> Result<Vec<Option<TensorType>>, Fault> {
        let dims = known(inputs, 0).and_then(|x| x.dims.clone());
        let parts = dims.clone().map(|d| d.into_iter().chain([Dim::Unknown]).collect());
        let ty = |dtype, dims| Some(TensorType { dtype, dims });
        Ok(vec![ty(DType::Str, parts), ty(DType::I64, dims)])
    }

    fn float(&self, inputs: &[Option<Array>]) -> Result<Vec<Array>, Fault> {
        let x = required(inputs, 0)?;
        let parts: Vec<Vec<String>> = x.slice::<String>()?.iter().map(|s| self.parts(s)).collect();
        let counts: Vec<i64> = parts.iter().map(|p| p.len() as i64).collect();
        let width = parts.iter().map(Vec::len).max().unwrap_or(0);
        let padded = parts.into_iter().flat_map(|mut p| {
            p.resize(width, String::new());
            p
        });
        let shape: Vec<usize> = x.shape().iter().copied().chain([width]).collect();
        Ok(vec![Array::new(&shape, padded.collect())?, Array::new(x.shape(), counts)?])
    }
}

/// [StringNormalizer](https://onnx.ai/onnx/operators/onnx__StringNormalizer.html): strings in one case, without those that
/// say nothing. The locale is not regarded: upper and lower case are Unicode's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Normalizer {
    case: Case,
    case_sensitive: bool,
    stopwords: BTreeSet<String>,
}

/// What becomes of upper and lower case.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Case {
    Lower,
    Upper,
    None,
}

impl Case {
    fn of(self, text: &str) -> String {
        match self {
            Self::Lower => text.to_lowercase(),
            Self::Upper => text.to_uppercase(),
            Self::None => text.to_string(),
        }
    }
}

impl Normalizer {
    fn parse(attrs: &mut Attrs) -> Result<Arc<dyn Op>, Fault> {
        attrs.opt_string("locale")?;
        let case = match attrs.string("case_change_action", "NONE")?.as_str() {
            "LOWER" => Case::Lower,
            "UPPER" => Case::Upper,
            "NONE" => Case::None,
            other => fail!("unknown case_change_action {other}"),
        };
        let case_sensitive = attrs.flag("is_case_sensitive", false)?;
        let words = attrs.opt_strings("stopwords")?.unwrap_or_default();
        let stopwords = words.into_iter().map(|w| if case_sensitive { w } else { w.to_lowercase() }).collect();
        Ok(Arc::new(Self { case, case_sensitive, stopwords }))
    }

    fn kept(&self, word: &str) -> bool {
        match self.case_sensitive {
            true => !self.stopwords.contains(word),
            false => !self.stopwords.contains(&word.to_lowercase()),
        }
    }
}

impl Op for Normalizer {
    fn infer(&self, _: &[Option<Fact>]) -> Result<Vec<Option<TensorType>>, Fault> {
        Ok(vec![Some(TensorType::unranked(DType::Str))])
    }

    fn float(&self, inputs: &[Option<Array>]) -> Result<Vec<Array>, Fault> {
        let x = required(inputs, 0)?;
        let words = x.slice::<String>()?.iter().filter(|w| self.kept(w));
        let mut words: Vec<String> = words.map(|w| self.case.of(w)).collect();
        if words.is_empty() {
            words.push(String::new());
        }
        match x.shape() {
            [_] => Ok(vec![Array::vector(words)]),
            [1, _] => Ok(vec![Array::new(&[1, words.len()], words)?]),
            shape => fail!("{shape:?} is neither a vector nor a single row"),
        }
    }
}

/// RegexFullMatch: does a regular expression describe the whole string?
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FullMatch {
    regex: Regex,
}

impl FullMatch {
    fn parse(attrs: &mut Attrs) -> Result<Arc<dyn Op>, Fault> {
        Ok(Arc::new(Self { regex: Regex::new(&attrs.string("pattern", "")?)? }))
    }
}

impl Op for FullMatch {
    fn infer(&self, inputs: &[Option<Fact>]) -> Result<Vec<Option<TensorType>>, Fault> {
        let dims = known(inputs, 0).and_then(|x| x.dims.clone());
        Ok(vec![Some(TensorType { dtype: DType::Bool, dims })])
    }

    fn float(&self, inputs: &[Option<Array>]) -> Result<Vec<Array>, Fault> {
        let x = required(inputs, 0)?;
        let found = x.slice::<String>()?.iter().map(|s| self.regex.matches(s)).collect();
        Ok(vec![Array::new::<bool>(x.shape(), found)?])
    }
}

/// A word or a number of a vocabulary.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum Token {
    Word(String),
    Number(i64),
}

/// [TfIdfVectorizer](https://onnx.ai/onnx/operators/onnx__TfIdfVectorizer.html): how often each run of a vocabulary occurs.
#[derive(Debug, Clone, PartialEq)]
pub struct Vectorizer {
    /// For each run its column.
    columns: HashMap<Vec<Token>, Vec<usize>>,
    weights: Option<Vec<f32>>,
    /// Weights of runs, in their order, by column.
    width: usize,
    lengths: (usize, usize),
    max_skip: usize,
    mode: Weighting,
}

/// How a count becomes a number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Weighting {
    Count,
    Presence,
    Weighted,
}

impl Vectorizer {
    fn parse(attrs: &mut Attrs) -> Result<Arc<dyn Op>, Fault> {
        let mode = match attrs.string("mode", "")?.as_str() {
            "TF" => Weighting::Count,
            "IDF" => Weighting::Presence,
            "TFIDF" => Weighting::Weighted,
            other => fail!("unknown mode {other}"),
        };
        let mut list = |name: &str| -> Result<Vec<usize>, Fault> {
            let list = attrs.opt_ints(name)?.unwrap_or_default();
            super::slots::extents(&list)
        };
        let (starts, indexes) = (list("ngram_counts")?, list("ngram_indexes")?);
        let words = attrs.opt_strings("pool_strings")?.unwrap_or_default().into_iter().map(Token::Word);
        let numbers = attrs.opt_ints("pool_int64s")?.unwrap_or_default().into_iter().map(Token::Number);
        let pool: Vec<Token> = words.chain(numbers).collect();
        let mut size = |name: &str| -> Result<usize, Fault> {
            let value = attrs.int(name, 0)?;
            usize::try_from(value).map_err(|_| format!("{name} is {value}").into())
        };
        let (lengths, max_skip) = ((size("min_gram_length")?, size("max_gram_length")?), size("max_skip_count")?);
        let mut columns: HashMap<Vec<Token>, Vec<usize>> = HashMap::new();
        let mut indexes_left = indexes.iter().copied();
        for (n, &start) in starts.iter().enumerate() {
            let end = starts.get(n + 1).copied().unwrap_or(pool.len());
            let Some(runs) = pool.get(start..end) else { fail!("ngram_counts leave the pool of {}", pool.len()) };
            for run in runs.chunks_exact(n + 1) {
                let Some(column) = indexes_left.next() else { fail!("ngram_indexes are fewer than the runs") };
                columns.entry(run.to_vec()).or_default().push(column);
            }
        }
        let width = indexes.iter().max().map_or(0, |m| m + 1);
        let weights = attrs.opt_floats("weights")?;
        if width > 1 << 28 {
            fail!("{width} columns");
        }
        Ok(Arc::new(Self { columns, weights, width, lengths, max_skip, mode }))
    }

    /// How often each column's runs occur in a row. Runs of one element have no gaps, so that they count once.
    fn count(&self, row: &[Token]) -> Vec<usize> {
        let mut counts = vec![0; self.width];
        for n in self.lengths.0.max(1)..=self.lengths.1.min(row.len()) {
            for step in 1..=if n == 1 { 1 } else { self.max_skip + 1 } {
                for start in 0..row.len().saturating_sub((n - 1).saturating_mul(step)) {
                    let run: Vec<Token> = row.iter().skip(start).step_by(step).take(n).cloned().collect();
                    for &column in self.columns.get(&run).into_iter().flatten() {
                        counts[column] += 1;
                    }
                }
            }
        }
        counts
    }

    fn value(&self, column: usize, count: usize) -> f32 {
        let weight = self.weights.as_ref().and_then(|w| w.get(column).copied()).unwrap_or(1.0);
        match self.mode {
            Weighting::Count => count as f32,
            Weighting::Presence => if count > 0 { weight } else { 0.0 },
            Weighting::Weighted => count as f32 * weight,
        }
    }
}

impl Op for Vectorizer {
    fn infer(&self, _: &[Option<Fact>]) -> Result<Vec<Option<TensorType>>, Fault> {
        Ok(vec![Some(TensorType::unranked(DType::F32))])
    }

    fn float(&self, inputs: &[Option<Array>]) -> Result<Vec<Array>, Fault> {
        let x = required(inputs, 0)?;
        let tokens: Vec<Token> = match x {
            Array::Str(_) => x.slice::<String>()?.iter().cloned().map(Token::Word).collect(),
            other => other.to_i64()?.into_iter().map(Token::Number).collect(),
        };
        let (rows, length, shape) = match *x.shape() {
            [length] => (1, length, vec![self.width]),
            [rows, length] => (rows, length, vec![rows, self.width]),
            _ => fail!("{:?} is neither a vector nor a batch of vectors", x.shape()),
        };
        let row = |i: usize| tokens.get(i * length..(i + 1) * length).unwrap_or_default();
        let counts = (0..rows).flat_map(|i| self.count(row(i)).into_iter().enumerate());
        Ok(vec![Array::new(&shape, counts.map(|(column, n)| self.value(column, n)).collect())?])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn backend() {
        crate::ops::backend_tests::run("text");
    }

    fn split(delimiter: Option<&str>, maxsplit: Option<usize>, text: &str) -> Vec<String> {
        Split { delimiter: delimiter.map(String::from), maxsplit }.parts(text)
    }

    #[test]
    fn strings_split() {
        assert_eq!(split(None, None, "  a b\t c  "), ["a", "b", "c"]);
        assert_eq!(split(None, Some(1), " a  b c "), ["a", "b c"]);
        assert_eq!(split(Some("--"), None, "a--b----c"), ["a", "b", "", "c"]);
        assert_eq!(split(Some("-"), Some(1), "a-b-c"), ["a", "b-c"]);
        assert!(split(None, None, "  ").is_empty());
    }

    #[test]
    fn words_that_say_nothing_go() {
        let words = ["The", "cat", "the", "DOG"].map(String::from).to_vec();
        let normalize = |case, case_sensitive| {
            let stopwords = ["the".to_string()].into();
            let op = Normalizer { case, case_sensitive, stopwords };
            let y = op.float(&[Some(Array::vector(words.clone()))]).unwrap();
            y[0].slice::<String>().unwrap().to_vec()
        };
        assert_eq!(normalize(Case::Upper, true), ["THE", "CAT", "DOG"]);
        assert_eq!(normalize(Case::Lower, false), ["cat", "dog"]);
        assert_eq!(normalize(Case::None, false), ["cat", "DOG"]);
    }
}
