"""Recorded bits of gumbel(x) (src/base/noise.h) for the noise test: lines "x bits", both hexadecimal.

    python gumbel.py > tests/oracle/text/sampling/gumbel.txt

A second implementation: every operation in float64, rounded to float32 (exact for +, - and *). It stops when a value is further
than 4e-7 max(1, |G|) from the exact one.
"""

import math
import random
import struct


def f32(x):
    return struct.unpack("<f", struct.pack("<f", x))[0]


def bits(x):
    return struct.unpack("<I", struct.pack("<f", x))[0]


def from_bits(u):
    return struct.unpack("<f", struct.pack("<I", u))[0]


COEFFICIENTS = [float.fromhex(c) for c in (
    "0x1.555554p-2", "-0x1.fffffcp-3", "0x1.999d5ap-3", "-0x1.555b4ap-3", "0x1.23d21ap-3", "-0x1.fcf4c6p-4", "0x1.dea282p-4",
    "-0x1.d635bcp-4", "0x1.1d8ea6p-4")]
LN2_HIGH, LN2_LOW = float.fromhex("0x1.62e000p-1"), float.fromhex("0x1.0bfbe8p-15")


def log_of(exponent, r):
    q = COEFFICIENTS[-1]
    for c in reversed(COEFFICIENTS[:-1]):
        q = f32(f32(q * r) + c)
    t = f32(f32(r * r) * f32(f32(r * q) - 0.5))
    return f32(f32(exponent * LN2_HIGH) + f32(r + f32(t + f32(exponent * LN2_LOW))))


def log_f32(x):
    r, exponent = math.frexp(x)  # r in [1/2, 1)
    if r < from_bits(0x3F3504F3):
        exponent, r = exponent - 1, 2 * r
    return log_of(float(exponent), r - 1)


def gumbel(x):
    w = min(f32(f32(f32(float(x)) + 0.5) * 2.0**-32), 1 - 2.0**-24)
    e = -log_of(0.0, -w) if w < float.fromhex("0x1.2bec34p-2") else -log_f32(f32(1 - w))
    return -log_f32(e), -math.log(-math.log1p(-w))


def main():
    rng = random.Random(11)
    values = set(range(40)) | {2**32 - 1 - i for i in range(300, 0, -20)}
    for power in range(5, 32):
        values |= {2**power - 1, 2**power, 2**power + 1}
    values |= {2**32 - 128 + i for i in range(-3, 4)} | {2**32 - 1}
    values |= {rng.getrandbits(32) >> rng.choice([0, 0, 0, 4, 8, 16, 24]) for _ in range(1000)}
    for x in sorted(values):
        got, exact = gumbel(x)
        assert abs(got - exact) <= 4e-7 * max(1, abs(exact)), (x, got, exact)
        print(f"{x:08x} {bits(got):08x}")


if __name__ == "__main__":
    main()
