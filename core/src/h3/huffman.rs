//! Huffman code of header strings (RFC 7541 appendix B). The code is canonical, so that the lengths say everything.

/// Code lengths in bits, by byte.
#[rustfmt::skip]
const LENGTHS: [u8; 256] = [
    13, 23, 28, 28, 28, 28, 28, 28, 28, 24, 30, 28, 28, 30, 28, 28, 28, 28, 28, 28, 28, 28, 30, 28, 28, 28, 28, 28,
    28, 28, 28, 28, 6, 10, 10, 12, 13, 6, 8, 11, 10, 10, 8, 11, 8, 6, 6, 6, 5, 5, 5, 6, 6, 6, 6, 6, 6, 6, 7, 8, 15,
    6, 12, 10, 13, 6, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 8, 7, 8, 13, 19, 13, 14, 6,
    15, 5, 6, 5, 6, 5, 6, 6, 6, 5, 7, 7, 6, 6, 6, 5, 6, 7, 6, 5, 5, 6, 7, 7, 7, 7, 7, 15, 11, 14, 13, 28, 20, 22,
    20, 20, 22, 22, 22, 23, 22, 23, 23, 23, 23, 23, 24, 23, 24, 24, 22, 23, 24, 23, 23, 23, 23, 21, 22, 23, 22, 23,
    23, 24, 22, 21, 20, 22, 22, 23, 23, 21, 23, 22, 22, 24, 21, 22, 23, 23, 21, 21, 22, 21, 23, 22, 23, 23, 20, 22,
    22, 22, 23, 22, 22, 23, 26, 26, 20, 19, 22, 23, 22, 25, 26, 26, 26, 27, 27, 26, 24, 25, 19, 21, 26, 27, 27, 26,
    27, 24, 21, 21, 26, 26, 28, 27, 27, 27, 20, 24, 20, 21, 22, 21, 21, 23, 22, 22, 25, 25, 24, 24, 26, 23, 26, 27,
    26, 26, 27, 27, 27, 27, 27, 28, 27, 27, 27, 27, 27, 26,
];

const LONGEST: usize = 30;

/// By length: the first code, how many there are, and where their bytes begin in `SORTED`.
struct Tables {
    first: [u32; LONGEST + 1],
    count: [u16; LONGEST + 1],
    offset: [u16; LONGEST + 1],
    sorted: [u8; 256],
}

static TABLES: Tables = tables();

const fn tables() -> Tables {
    let mut tables = Tables {
        first: [0; LONGEST + 1],
        count: [0; LONGEST + 1],
        offset: [0; LONGEST + 1],
        sorted: [0; 256],
    };
    let (mut code, mut at, mut length) = (0u32, 0usize, 1usize);
    while length <= LONGEST {
        code <<= 1;
        tables.first[length] = code;
        tables.offset[length] = at as u16;
        let mut byte = 0;
        while byte < 256 {
            if LENGTHS[byte] as usize == length {
                tables.sorted[at] = byte as u8;
                tables.count[length] += 1;
                at += 1;
                code += 1;
            }
            byte += 1;
        }
        length += 1;
    }
    tables
}

/// Decodes; `None` for what is no code, for padding that is not the beginning of EOS or has 8 bits or more, and for more
/// than `most` bytes.
pub(super) fn decode(bytes: &[u8], most: usize) -> Option<Vec<u8>> {
    let mut out = Vec::with_capacity((bytes.len() * 8 / 5).min(most));
    let (mut code, mut length) = (0u32, 0usize);
    for bit in bytes.iter().flat_map(|byte| (0..8).rev().map(move |at| byte >> at & 1)) {
        code = code << 1 | u32::from(bit);
        length += 1;
        if length > LONGEST {
            return None;
        }
        let index = code.checked_sub(TABLES.first[length]).unwrap_or(u32::MAX);
        if index < u32::from(TABLES.count[length]) {
            if out.len() == most {
                return None;
            }
            out.push(TABLES.sorted[usize::from(TABLES.offset[length]) + index as usize]);
            (code, length) = (0, 0);
        }
    }
    let padding_is_ones = code == (1 << length) - 1;
    (length < 8 && padding_is_ones).then_some(out)
}
