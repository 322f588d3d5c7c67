"""Studies of scores that are no codes: reproduced to be understood, never to be reported.

Each module takes one practice that was claimed as a score and later ruled invalid
(`techniques.md` 9 and 10), repeats it, and measures what is wrong with it beside the honest form
on the same tokens. What the invalid form yields is a `claimed` figure. It is never called bits per
byte, as no decoder could be built that needs that many bits: only `honest` has figures of that
name.

`study(model, tokens, tokenizer, settings, progress)` of every module returns plain values under the
same keys:

    claimed     claimed_bits_per_byte and what it was computed from
    wrong       one sentence: why this is no score
    violation   the measured error: sums over the alphabet, or the leak
    honest      bpb_network, and the bpb of the valid form on the same tokens
    tokens, bytes, seconds, settings
"""
