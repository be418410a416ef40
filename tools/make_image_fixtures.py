#!/usr/bin/env python3
"""Writes the image files of tests/images and expected.json, the pixels that Pillow reads from each.

    make_image_fixtures.py [FOLDER]      needs Python with Pillow and numpy (recorded with Pillow 13.0: libjpeg-turbo 3.2, libwebp 1.6)

expected.json holds for every file its upright size and the FNV-1a hash (64 bits) of its RGB bytes, [height, width, 3], as
ImageOps.exif_transpose(Image.open(file)).convert("RGB") gives them. Everything is made from one small drawing, by this script alone.
"""
import io
import json
import pathlib
import struct
import sys
import zlib

import numpy as np
from PIL import Image, ImageOps

HEIGHT, WIDTH = 37, 53  # odd: partial blocks, subsampled chroma with a remainder


def drawing():
    """Smooth gradients with hard edges, uint8 [HEIGHT, WIDTH, 3]."""
    y, x = np.mgrid[0:HEIGHT, 0:WIDTH].astype(np.float64)
    planes = [127 + 120 * np.sin(x / 7 + c) * np.cos(y / (5 + c)) for c in range(3)]
    image = np.stack(planes, -1).round().clip(0, 255).astype(np.uint8)
    image[5:15, 30:45] = (250, 10, 40)
    image[20:30, 4:9] = 0
    image[25:, 40:] = (np.arange(13)[None, :, None] % 2 * 255).astype(np.uint8)
    return image


def alpha():
    return np.linspace(0, 255, HEIGHT * WIDTH).round().astype(np.uint8).reshape(HEIGHT, WIDTH)


def fnv1a(content):
    value = 0xCBF29CE484222325
    for byte in content:
        value = (value ^ byte) * 0x100000001B3 & 0xFFFFFFFFFFFFFFFF
    return value


def exif(orientation, big_endian=False):
    """An EXIF block that says how the camera was held."""
    order = '>' if big_endian else '<'
    mark = b'MM' if big_endian else b'II'
    tag = struct.pack(order + 'HHIHH', 0x0112, 3, 1, orientation, 0)
    return b'Exif\0\0' + mark + struct.pack(order + 'HI', 42, 8) + struct.pack(order + 'H', 1) + tag + bytes(4)


def encoded(image, kind, **options):
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


# ---- PNG: chunks by hand, because Pillow writes neither every depth nor interlaced files


def chunk(name, body):
    return struct.pack('>I', len(body)) + name + body + struct.pack('>I', zlib.crc32(name + body))


ADAM7 = ((0, 0, 8, 8), (0, 4, 8, 8), (4, 0, 8, 4), (0, 2, 4, 4), (2, 0, 4, 2), (0, 1, 2, 2), (1, 0, 2, 1))


def png(samples, colour_type, depth, interlaced=False, extra=b'', after=b''):
    """A PNG of samples [height, width, channels]; `extra` stands before the pixel data, `after` behind it."""
    def rows(part):
        out = b''
        for row in part:
            flat = row.reshape(-1)
            if depth == 16:
                packed = flat.astype('>u2').tobytes()
            else:
                bits = (flat[:, None] >> np.arange(depth - 1, -1, -1)) & 1
                packed = np.packbits(bits.astype(np.uint8).reshape(-1)).tobytes()
            out += b'\0' + packed
        return out

    height, width = samples.shape[:2]
    parts = [samples[y::sy, x::sx] for y, x, sy, sx in ADAM7] if interlaced else [samples]
    pixels = b''.join(rows(part) for part in parts if part.size)
    header = struct.pack('>IIBBBBB', width, height, depth, colour_type, 0, 0, int(interlaced))
    return (b'\x89PNG\r\n\x1a\n' + chunk(b'IHDR', header) + extra + chunk(b'IDAT', zlib.compress(pixels, 9)) + after
            + chunk(b'IEND', b''))


def png_files(image):
    grey = image[..., :1].astype(np.int64)
    wide = image.astype(np.int64) * 257
    wide[::3] += 90  # low bytes that matter where 16 bits are clipped
    wide = wide.clip(0, 65535)
    low = grey * 3 % 400  # 16-bit grey around 255
    palette = np.stack([np.arange(16) * 17, 255 - np.arange(16) * 11, np.arange(16) ** 2], -1).astype(np.uint8)
    plte = chunk(b'PLTE', palette.tobytes())
    translucent = chunk(b'tRNS', bytes(range(0, 160, 10)))
    with_alpha = np.dstack([image, alpha()]).astype(np.int64)
    for depth in (1, 2, 4, 8):
        yield f'grey_{depth}.png', png(grey >> (8 - depth), 0, depth)
        indices = grey % min(16, 1 << depth)
        yield f'palette_{depth}.png', png(indices, 3, depth, extra=plte if depth >= 4 else chunk(b'PLTE', palette[:1 << depth].tobytes()))
    yield 'grey_16.png', png(low, 0, 16)
    yield 'grey_16_interlaced.png', png(low, 0, 16, interlaced=True)
    yield 'grey_transparent.png', png(grey, 0, 8, extra=chunk(b'tRNS', struct.pack('>H', 127)))
    yield 'grey_alpha_8.png', png(np.dstack([grey, alpha()]), 4, 8)
    yield 'grey_alpha_16.png', png(np.dstack([wide[..., :1], alpha().astype(np.int64) * 257]), 4, 16)
    yield 'rgb_8.png', png(image.astype(np.int64), 2, 8)
    yield 'rgb_16.png', png(wide, 2, 16)
    yield 'rgb_interlaced.png', png(image.astype(np.int64), 2, 8, interlaced=True)
    yield 'rgb_transparent.png', png(image.astype(np.int64), 2, 8, extra=chunk(b'tRNS', struct.pack('>HHH', 250, 10, 40)))
    yield 'rgba_8.png', png(with_alpha, 6, 8)
    yield 'rgba_16.png', png(with_alpha * 257, 6, 16)
    yield 'rgba_interlaced.png', png(with_alpha, 6, 8, interlaced=True)
    yield 'palette_transparent.png', png(grey % 16, 3, 4, extra=plte + translucent)
    yield 'palette_interlaced.png', png(grey % 16, 3, 8, interlaced=True, extra=plte)
    yield 'palette_missing_colours.png', png(grey % 20, 3, 8, extra=plte)
    yield 'orientation_6.png', png(image.astype(np.int64), 2, 8, extra=chunk(b'eXIf', exif(6)[6:]))
    yield 'orientation_8_behind.png', png(image.astype(np.int64), 2, 8, after=chunk(b'eXIf', exif(8, True)[6:]))
    yield 'one_pixel.png', png(image[:1, :1].astype(np.int64), 2, 8)
    yield 'one_column_interlaced.png', png(image[:, :1].astype(np.int64), 2, 8, interlaced=True)


# ---- GIF: by hand as well, with codes that never grow beyond literals unless the file is Pillow's


def gif_frame(indices, root_bits, left=0, top=0, interlaced=False, palette=b'', control=b''):
    """An image block whose codes are all literals; a clear code keeps them at one width."""
    height, width = indices.shape
    order = [y for first, step in ((0, 8), (4, 8), (2, 4), (1, 2)) for y in range(first, height, step)] if interlaced else range(height)
    bits, held, data = 0, 0, bytearray()

    def put(code):
        nonlocal bits, held
        bits |= code << held
        held += root_bits + 1
        while held >= 8:
            data.append(bits & 255)
            bits >>= 8
            held -= 8

    for number, index in enumerate(int(i) for y in order for i in indices[y]):
        if number % ((1 << root_bits) - 2) == 0:
            put(1 << root_bits)
        put(index)
    put((1 << root_bits) + 1)
    if held:
        data.append(bits & 255)
    size = len(palette) // 3
    packed = (0x80 | (size.bit_length() - 2) if palette else 0) | (0x40 if interlaced else 0)
    blocks = b''.join(bytes([len(data[i:i + 255])]) + bytes(data[i:i + 255]) for i in range(0, len(data), 255))
    return control + struct.pack('<BHHHHB', 0x2C, left, top, width, height, packed) + palette + bytes([root_bits]) + blocks + b'\0'


def gif(frames, width=WIDTH, height=HEIGHT, palette=b''):
    size = len(palette) // 3
    packed = 0x80 | (size.bit_length() - 2) if palette else 0
    return b'GIF89a' + struct.pack('<HHBBB', width, height, packed, 3, 0) + palette + b''.join(frames) + b';'


def transparent_colour(index):
    return b'\x21\xf9\x04\x01\x05\x00' + bytes([index]) + b'\0'


def gif_files(image):
    colours = Image.fromarray(image).quantize(64)
    palette = np.stack([np.arange(16) * 17, 255 - np.arange(16) * 11, np.arange(16) ** 2], -1).astype(np.uint8).tobytes()
    other = bytes(reversed(palette))
    indices = image[..., 0].astype(np.int64) % 16
    small = indices[5:20, 7:30]
    comment = b'\x21\xfe\x05hello\x00'
    yield 'static.gif', encoded(colours, 'GIF')
    yield 'animated.gif', encoded(colours, 'GIF', save_all=True, append_images=[colours.transpose(Image.Transpose.FLIP_LEFT_RIGHT)])
    yield 'noise.gif', encoded(Image.fromarray(noise(90)).quantize(256), 'GIF')  # fills the code table
    yield 'interlaced.gif', gif([gif_frame(indices, 4, interlaced=True)], palette=palette)
    yield 'transparent.gif', gif([comment + gif_frame(indices, 4, control=transparent_colour(5))], palette=palette)
    yield 'frame_inside.gif', gif([gif_frame(small, 4, 7, 5)], palette=palette)
    yield 'frame_inside_transparent.gif', gif([gif_frame(small, 4, 7, 5, control=transparent_colour(9))], palette=palette)
    yield 'frame_outside.gif', gif([gif_frame(small, 4, 40, 30)], palette=palette)
    yield 'own_palette.gif', gif([gif_frame(indices, 4, palette=other)], palette=palette)
    yield 'no_palette.gif', gif([gif_frame(image[..., 0].astype(np.int64) & 127, 7)])
    yield 'missing_colours.gif', gif([gif_frame(indices, 4)], palette=palette[:24])


def noise(side):
    return np.random.default_rng(7).integers(0, 256, (side, side, 3)).astype(np.uint8)


# ---- JPEG and WebP


def jpeg_files(image):
    picture = Image.fromarray(image)
    grey, cmyk = picture.convert('L'), picture.convert('CMYK')
    for name, subsampling in (('444', 0), ('422', 1), ('420', 2)):
        yield f'baseline_{name}.jpg', encoded(picture, 'JPEG', quality=90, subsampling=subsampling)
    yield 'progressive.jpg', encoded(picture, 'JPEG', quality=80, progressive=True)
    yield 'optimized.jpg', encoded(picture, 'JPEG', quality=60, optimize=True, restart_marker_rows=1)
    yield 'grey.jpg', encoded(grey, 'JPEG', quality=85)
    yield 'grey_progressive.jpg', encoded(grey, 'JPEG', quality=85, progressive=True)
    yield 'cmyk.jpg', encoded(cmyk, 'JPEG', quality=90)
    yield 'cmyk_progressive.jpg', encoded(cmyk, 'JPEG', quality=90, progressive=True)
    for orientation in range(1, 9):
        yield f'orientation_{orientation}.jpg', encoded(picture, 'JPEG', quality=75, exif=exif(orientation, orientation % 2 == 0))
    yield 'orientation_9.jpg', encoded(picture, 'JPEG', quality=75, exif=exif(9))  # none of the eight: left as it is


def webp_files(image):
    picture = Image.fromarray(image)
    clear = Image.fromarray(np.dstack([image, alpha()]))
    turned = picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    yield 'lossy.webp', encoded(picture, 'WEBP', quality=80)
    yield 'lossless.webp', encoded(picture, 'WEBP', lossless=True)
    yield 'lossy_alpha.webp', encoded(clear, 'WEBP', quality=80, exact=True)
    yield 'lossless_alpha.webp', encoded(clear, 'WEBP', lossless=True, exact=True)
    yield 'animated.webp', encoded(picture, 'WEBP', lossless=True, save_all=True, append_images=[turned], duration=100)
    yield 'orientation_7.webp', encoded(picture, 'WEBP', lossless=True, exif=exif(7))
    animation = encoded(picture, 'WEBP', lossless=True, save_all=True, append_images=[turned], duration=100)
    at = animation.index(b'VP8X') + 12  # canvas width - 1 and height - 1, 24 bits each: enlarge it around the frame
    yield 'frame_inside.webp', animation[:at] + struct.pack('<I', WIDTH + 10)[:3] + struct.pack('<I', HEIGHT + 6)[:3] + animation[at + 6:]


def main():
    folder = pathlib.Path(sys.argv[1] if len(sys.argv) > 1 else pathlib.Path(__file__).parent.parent / 'tests' / 'images')
    folder.mkdir(parents=True, exist_ok=True)
    image, expected, total = drawing(), {}, 0
    for files in (png_files, gif_files, jpeg_files, webp_files):
        for name, content in files(image):
            (folder / name).write_bytes(content)
            upright = ImageOps.exif_transpose(Image.open(io.BytesIO(content))).convert('RGB')
            expected[name] = {'size': [upright.height, upright.width], 'fnv1a': f'{fnv1a(upright.tobytes()):016x}'}
            total += len(content)
    lines = ',\n'.join(f'  {json.dumps(name)}: {json.dumps(value)}' for name, value in expected.items())
    (folder / 'expected.json').write_text('{\n' + lines + '\n}\n')
    print(f'{len(expected)} images, {total} bytes')


if __name__ == '__main__':
    main()
