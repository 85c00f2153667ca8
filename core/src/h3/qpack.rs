//! QPACK field sections (RFC 9204) without a dynamic table: static references, literals, Huffman on receipt.

use super::statics::TABLE;
use super::{H3Error, MAX_FIELD_SECTION, huffman};

/// One field line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Field {
    pub name: String,
    pub value: String,
}

/// Decodes a field section. Bounded by [`MAX_FIELD_SECTION`] as RFC 9114 4.2.2 counts it (32 bytes on top a line).
pub fn decode(section: &[u8]) -> Result<Vec<Field>, H3Error> {
    let mut input = Input(section);
    // No dynamic table: the required insert count and the base must be 0.
    let required = input.integer(8)?;
    let _sign_and_base = input.integer(7)?;
    if required != 0 {
        return Err(H3Error::QpackDecompression);
    }
    let mut fields = Vec::new();
    let mut size = 0;
    while !input.0.is_empty() {
        let field = input.field()?;
        size += field.name.len() + field.value.len() + 32;
        if size > MAX_FIELD_SECTION {
            return Err(H3Error::ExcessiveLoad);
        }
        fields.push(field);
    }
    Ok(fields)
}

struct Input<'a>(&'a [u8]);

impl Input<'_> {
    fn field(&mut self) -> Result<Field, H3Error> {
        let first = self.peek()?;
        match first {
            // Indexed: static only.
            0x80.. => {
                let (name, value) = Self::entry(first & 0x40 != 0, self.integer(6)?)?;
                Ok(Field {
                    name: name.into(),
                    value: value.into(),
                })
            }
            // Literal with a name reference.
            0x40..0x80 => {
                let (name, _) = Self::entry(first & 0x10 != 0, self.integer(4)?)?;
                Ok(Field {
                    name: name.into(),
                    value: self.string(7)?,
                })
            }
            // Literal with a literal name.
            0x20..0x40 => Ok(Field {
                name: self.string(3)?,
                value: self.string(7)?,
            }),
            // Post-base references are dynamic.
            0x00..0x20 => Err(H3Error::QpackDecompression),
        }
    }

    fn entry(is_static: bool, index: u64) -> Result<(&'static str, &'static str), H3Error> {
        let entry = usize::try_from(index)
            .ok()
            .and_then(|index| TABLE.get(index))
            .filter(|_| is_static);
        entry.copied().ok_or(H3Error::QpackDecompression)
    }

    /// A string whose length has a prefix of `bits`; the bit above says whether it is Huffman-coded.
    fn string(&mut self, bits: u32) -> Result<String, H3Error> {
        let huffman_coded = self.peek()? >> bits & 1 == 1;
        let length = usize::try_from(self.integer(bits)?).map_err(|_| H3Error::QpackDecompression)?;
        if length > self.0.len() {
            return Err(H3Error::QpackDecompression);
        }
        let (raw, rest) = self.0.split_at(length);
        self.0 = rest;
        let bytes = if huffman_coded {
            huffman::decode(raw, MAX_FIELD_SECTION).ok_or(H3Error::QpackDecompression)?
        } else {
            raw.to_vec()
        };
        // Field values are visible ASCII in all that we speak; others are malformed.
        String::from_utf8(bytes).map_err(|_| H3Error::Message)
    }

    /// A prefixed integer (RFC 7541 5.1), below 2^32.
    fn integer(&mut self, bits: u32) -> Result<u64, H3Error> {
        let mask = (1u64 << bits) - 1;
        let mut value = u64::from(self.take()?) & mask;
        if value < mask {
            return Ok(value);
        }
        for shift in (0..28).step_by(7) {
            let byte = self.take()?;
            value += u64::from(byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                return Ok(value);
            }
        }
        Err(H3Error::QpackDecompression)
    }

    fn peek(&self) -> Result<u8, H3Error> {
        self.0.first().copied().ok_or(H3Error::QpackDecompression)
    }

    fn take(&mut self) -> Result<u8, H3Error> {
        let byte = self.peek()?;
        self.0 = &self.0[1..];
        Ok(byte)
    }
}

/// Encodes a field section: whole static matches by index, static names by reference, the rest literally.
pub fn encode<'a>(fields: impl IntoIterator<Item = (&'a str, &'a str)>) -> Vec<u8> {
    let mut out = vec![0, 0];
    for (name, value) in fields {
        let whole = TABLE.iter().position(|entry| *entry == (name, value));
        let named = TABLE.iter().position(|entry| entry.0 == name);
        match (whole, named) {
            (Some(index), _) => integer(0xc0, 6, index, &mut out),
            (None, Some(index)) => {
                integer(0x50, 4, index, &mut out);
                string(0, 7, value, &mut out);
            }
            (None, None) => {
                string(0x20, 3, name, &mut out);
                string(0, 7, value, &mut out);
            }
        }
    }
    out
}

fn string(pattern: u8, bits: u32, text: &str, out: &mut Vec<u8>) {
    integer(pattern, bits, text.len(), out);
    out.extend_from_slice(text.as_bytes());
}

fn integer(pattern: u8, bits: u32, value: usize, out: &mut Vec<u8>) {
    let mask = (1usize << bits) - 1;
    let low = |value: usize| u8::try_from(value & 0xff).unwrap_or(u8::MAX);
    if value < mask {
        return out.push(pattern | low(value));
    }
    out.push(pattern | low(mask));
    let mut rest = value - mask;
    while rest >= 0x80 {
        out.push(low(rest & 0x7f) | 0x80);
        rest >>= 7;
    }
    out.push(low(rest));
}
