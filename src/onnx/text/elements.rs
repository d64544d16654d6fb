//! The elements of a tensor: literals and fills into typed fields, and either encoding back into elements.

use bytes::Bytes;
use half::{bf16, f16};

use super::parse::string_pairs;
use super::scan::{Literal, Number, Parse, Scanner};
use crate::kernels::random::split_mix_64;
use crate::proto::{
    TensorProto,
    tensor_proto::{DataLocation, DataType},
};

/// A fill may write this many elements; a longer tensor is surely a slip.
const MAX_FILL: usize = 1 << 24;

/// The element type; one that the schema does not know is undefined.
pub(super) fn kind(tensor: &TensorProto) -> DataType {
    DataType::try_from(tensor.data_type()).unwrap_or_default()
}

/// Whether `word` starts a fill in place of elements.
pub(super) fn is_fill(word: &str) -> bool {
    matches!(word, "fill" | "random")
}

/// Reads what stands after `=`: elements, a reference to external data, or a fill.
pub(super) fn read(s: &mut Scanner, tensor: &mut TensorProto) -> Parse<()> {
    let mark = s.mark();
    match s.peek() {
        Some('{') => {
            s.list("{", "}", |s| {
                let mark = s.mark();
                let element = s.literal()?;
                push(tensor, element, s, mark)
            })?;
        }
        Some('[') => {
            tensor.external_data = string_pairs(s)?;
            tensor.set_data_location(DataLocation::External);
        }
        Some('<') => return s.fail("a digest stands for elements that were not printed"),
        _ => match s.peek_word() {
            Some("fill") => {
                s.word("a fill")?;
                s.expect("(")?;
                let element = s.literal()?;
                s.expect(")")?;
                for _ in 0..fill_length(s, mark, tensor)? {
                    push(tensor, element.clone(), s, mark)?;
                }
            }
            Some("random") => {
                s.word("a fill")?;
                random(s, mark, tensor)?;
            }
            _ => return s.fail("expected `{`, `[`, `fill` or `random`"),
        },
    }
    Ok(())
}

fn fill_length(s: &Scanner, mark: usize, tensor: &TensorProto) -> Parse<usize> {
    let times = |length: usize, &size: &i64| length.checked_mul(usize::try_from(size).ok()?);
    let length = tensor.dims.iter().try_fold(1usize, times);
    match length {
        Some(length) if length <= MAX_FILL => Ok(length),
        _ => s.fail_at(mark, format!("a fill is limited to {MAX_FILL} elements")),
    }
}

fn random(s: &mut Scanner, mark: usize, tensor: &mut TensorProto) -> Parse<()> {
    s.expect("(")?;
    let seed_mark = s.mark();
    let seed: u64 = s.number()?.int(s, seed_mark)?;
    s.expect(",")?;
    let low = s.number()?.double;
    s.expect(",")?;
    let high = s.number()?.double;
    s.expect(")")?;
    if !(low.is_finite() && high.is_finite() && low <= high) {
        return s.fail_at(mark, "`random` needs finite bounds, the lower one first");
    }
    use DataType::{Bfloat16, Double, Float, Float16};
    let is_float = matches!(kind(tensor), Float | Double | Float16 | Bfloat16);
    let mut state = seed;
    for _ in 0..fill_length(s, mark, tensor)? {
        let u = (split_mix_64(&mut state) >> 11) as f64 / (1u64 << 53) as f64;
        let double = if is_float { low + (high - low) * u } else { low + ((high - low + 1.0) * u).floor() };
        let int = (!is_float).then_some(double as i128);
        push(tensor, Literal::Number(Number { int, single: double as f32, double }), s, mark)?;
    }
    Ok(())
}

/// Appends an element to the typed field that the element type is stored in.
fn push(tensor: &mut TensorProto, element: Literal, s: &Scanner, mark: usize) -> Parse<()> {
    use DataType as D;
    let kind = kind(tensor);
    let number = match element {
        Literal::Text(text) if kind == D::String => {
            tensor.string_data.push(Bytes::from(text));
            return Ok(());
        }
        Literal::Number(number) if kind != D::String => number,
        Literal::Text(_) => return s.fail_at(mark, "a string is no element of a tensor of numbers"),
        Literal::Number(_) => return s.fail_at(mark, "a number is no element of a tensor of strings"),
    };
    match kind {
        D::Float | D::Complex64 => tensor.float_data.push(number.single(s, mark)?),
        D::Double | D::Complex128 => tensor.double_data.push(number.double),
        D::Int64 => tensor.int64_data.push(number.int(s, mark)?),
        D::Uint64 => tensor.uint64_data.push(number.int(s, mark)?),
        D::Uint32 => tensor.uint64_data.push(number.int::<u32>(s, mark)?.into()),
        D::Float16 if number.int.is_none() => {
            tensor.int32_data.push(f16::from_f64(number.double).to_bits().into());
        }
        D::Bfloat16 if number.int.is_none() => {
            tensor.int32_data.push(bf16::from_f64(number.double).to_bits().into());
        }
        D::Int32 => tensor.int32_data.push(number.int(s, mark)?),
        D::Int16 => tensor.int32_data.push(number.int::<i16>(s, mark)?.into()),
        D::Uint16 | D::Float16 | D::Bfloat16 => tensor.int32_data.push(number.int::<u16>(s, mark)?.into()),
        D::Int8 => tensor.int32_data.push(number.int::<i8>(s, mark)?.into()),
        D::Bool if !matches!(number.int, Some(0 | 1)) => return s.fail_at(mark, "a bool is 0 or 1"),
        // The rest is stored as bytes: 8-bit floats, and types that share a byte.
        _ => tensor.int32_data.push(number.int::<u8>(s, mark)?.into()),
    }
    Ok(())
}

/// One element, in the widest type of its kind.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Element<'a> {
    Single(f32),
    Double(f64),
    Int(i64),
    Uint(u64),
    Text(&'a [u8]),
}

pub(super) type Elements<'a> = Box<dyn Iterator<Item = Element<'a>> + 'a>;

/// The elements of a tensor that holds its data itself, from `raw_data` or from the typed field.
///
/// A complex number is two elements, types that share a byte come as bytes. `half_bits` asks for the bit patterns
/// of 16-bit floats instead of their values. An incomplete last element of `raw_data` is passed over.
pub(super) fn elements(tensor: &TensorProto, half_bits: bool) -> Elements<'_> {
    use {DataType as D, Element as E};
    let kind = kind(tensor);
    let half = move |bits: u16| match kind {
        D::Float16 if !half_bits => E::Single(f16::from_bits(bits).to_f32()),
        D::Bfloat16 if !half_bits => E::Single(bf16::from_bits(bits).to_f32()),
        _ => E::Int(bits.into()),
    };
    let Some(raw) = tensor.raw_data.as_deref() else {
        return match kind {
            D::Float | D::Complex64 => Box::new(tensor.float_data.iter().map(|&x| E::Single(x))),
            D::Double | D::Complex128 => Box::new(tensor.double_data.iter().map(|&x| E::Double(x))),
            D::Int64 => Box::new(tensor.int64_data.iter().map(|&x| E::Int(x))),
            D::Uint32 | D::Uint64 => Box::new(tensor.uint64_data.iter().map(|&x| E::Uint(x))),
            D::String => Box::new(tensor.string_data.iter().map(|x| E::Text(x))),
            D::Float16 | D::Bfloat16 => Box::new(tensor.int32_data.iter().map(move |&x| half(x as u16))),
            _ => Box::new(tensor.int32_data.iter().map(|&x| E::Int(x.into()))),
        };
    };
    match kind {
        D::Float | D::Complex64 => chunks(raw, |x| E::Single(f32::from_le_bytes(x))),
        D::Double | D::Complex128 => chunks(raw, |x| E::Double(f64::from_le_bytes(x))),
        D::Int64 => chunks(raw, |x| E::Int(i64::from_le_bytes(x))),
        D::Uint64 => chunks(raw, |x| E::Uint(u64::from_le_bytes(x))),
        D::Uint32 => chunks(raw, |x| E::Uint(u32::from_le_bytes(x).into())),
        D::Int32 => chunks(raw, |x| E::Int(i32::from_le_bytes(x).into())),
        D::Int16 => chunks(raw, |x| E::Int(i16::from_le_bytes(x).into())),
        D::Uint16 | D::Float16 | D::Bfloat16 => chunks(raw, move |x| half(u16::from_le_bytes(x))),
        D::Int8 => chunks(raw, |x| E::Int(i8::from_le_bytes(x).into())),
        _ => chunks(raw, |x| E::Int(u8::from_le_bytes(x).into())),
    }
}

fn chunks<'a, const N: usize>(raw: &'a [u8], element: impl Fn([u8; N]) -> Element<'a> + 'a) -> Elements<'a> {
    Box::new(raw.as_chunks().0.iter().map(move |&bytes| element(bytes)))
}
