/// The two high bytes of the FNV-1a hash of a text, folded into one. The lowest bits of that hash depend on the lowest bits of the
/// text's bytes alone.
pub(crate) fn spread(text: &str) -> u8 {
    let hash =
        text.bytes().fold(0x811c_9dc5_u32, |hash, byte| (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193));
    let [high, low, ..] = hash.to_be_bytes();
    high ^ low
}
