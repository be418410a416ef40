#!/usr/bin/env python3
"""Pictures and videos in messages of `calandra serve` and `run-batch`, on the demo model, which has a vision tower.

    media_test.py PROGRAM [--full] [tests]

--full: all of the 2,000 texts of row C6. Nothing is asserted about time; loops that wait are bounded; all connections are loopback's.
"""
import base64
import concurrent.futures
import itertools
import json
import os
import pathlib
import random
import resource
import shutil
import socket
import struct
import subprocess
import sys
import tempfile
import unittest
import zlib

import gtest_report
import serve_harness
from serve_harness import ENVIRONMENT, MODEL, ROOT, Server

FULL = False
PICTURES = ROOT / 'demo' / 'demo-qwen3_5' / 'images'
FILES = [PICTURES / f'shapes_{i}.png' for i in (1, 2, 3, 4)]
QUESTION = 'Describe the image.'
IMAGE_PAD, VIDEO_PAD = 6092, 6093


def data_url(content, kind='image/png'):
    content = content.read_bytes() if isinstance(content, pathlib.Path) else content
    return f'data:{kind};base64,' + base64.b64encode(content).decode()


def image(content):
    return {'type': 'image_url', 'image_url': {'url': content if isinstance(content, str) else data_url(content)}}


def text(words=QUESTION):
    return {'type': 'text', 'text': words}


def chat(*parts, **body):
    return {'model': MODEL, 'messages': [{'role': 'user', 'content': list(parts)}], 'temperature': 0, 'max_tokens': 24,
            'return_token_ids': True, **body}


def png(width, height, rows=b'', depth=8, colour=2, header=None):
    """A PNG file; `rows` with their filter bytes, `header` instead of the size's."""
    def chunk(name, data):
        return struct.pack('>I', len(data)) + name + data + struct.pack('>I', zlib.crc32(name + data))
    head = header or struct.pack('>IIBBBBB', width, height, depth, colour, 0, 0, 0)
    return b'\x89PNG\r\n\x1a\n' + chunk(b'IHDR', head) + chunk(b'IDAT', zlib.compress(rows)) + chunk(b'IEND', b'')


def one_colour(width, height, rgb=b'\x20\xa0\xe0'):
    return png(width, height, (b'\0' + rgb * width) * height)


def generate(*flags):
    done = subprocess.run([serve_harness.PROGRAM, 'generate', '--json', '--temperature', '0', '--max-tokens', '24', *flags],
                          capture_output=True, text=True, env=ENVIRONMENT, check=True)
    return json.loads(done.stdout)


class Media(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.folder = pathlib.Path(tempfile.mkdtemp(prefix='calandra_media_'))
        (cls.folder / 'media').mkdir()
        shutil.copy(FILES[0], cls.folder / 'media' / 'a b.png')
        shutil.copy(FILES[0], cls.folder / 'outside.png')
        (cls.folder / 'media' / 'escape.png').symlink_to('../outside.png')
        cls.listener = socket.create_server(('127.0.0.1', 0))
        cls.listener.settimeout(0)
        port = cls.listener.getsockname()[1]
        cls.hosts = [f'{host}:{port}' for host in ('127.0.0.1', 'localhost', '2130706433', '0x7f.1', '127.1')]
        cls.server = Server('--allowed-media-domains', ','.join(cls.hosts), '--allowed-local-media-path',
                            str(cls.folder / 'media'), '--limit-mm-per-prompt', '{"image": 3, "video": {"count": 1}}')

    @classmethod
    def tearDownClass(cls):
        shutil.rmtree(cls.folder)
        cls.listener.close()
        assert cls.server.end() == 0

    def answer(self, *parts, **body):
        return self.server.ok('/v1/chat/completions', chat(*parts, **body))

    def refused(self, *parts, status=400, server=None, **body):
        """The error of a request; a stream is refused with the same status, before it begins."""
        for stream in (False, True):
            got, headers, reply = (server or self.server).ask('/v1/chat/completions', chat(*parts, **body, stream=stream))
            self.assertEqual(got, status, reply[:300])
            self.assertEqual(headers['Content-Type'], 'application/json')
        return json.loads(reply)['error']

    def ids(self, messages, **body):
        return self.server.ok('/tokenize', {'model': MODEL, 'messages': messages, **body})['tokens']

    # what is shown is seen

    def test_pictures_as_recorded_and_as_generate_sees_them(self):
        cases = json.loads((PICTURES / 'expected.json').read_text())['cases']
        self.assertEqual(len(cases), 4)
        for case in cases:
            reply = self.answer(image(PICTURES / case['file']), text(case['question']), max_tokens=60)
            self.assertEqual(reply['choices'][0]['token_ids'], case['output_ids'], case['file'])
            self.assertEqual(reply['choices'][0]['message']['content'], case['output'])
            self.assertEqual(reply['usage']['prompt_tokens'], len(case['prompt_ids']))
        mine = generate('--image', str(FILES[0]), '--image', str(FILES[1]), QUESTION)
        reply = self.answer(image(FILES[0]), image(FILES[1]), text())
        self.assertEqual(reply['choices'][0]['token_ids'], mine['token_ids'])
        self.assertEqual(self.ids(chat(image(FILES[0]), image(FILES[1]), text())['messages']), mine['prompt_token_ids'])

    def test_a_stream_is_the_answer(self):
        body = chat(image(FILES[2]), text())
        whole = self.server.ok('/v1/chat/completions', body)
        headers = self.server.ask('/v1/chat/completions', {**body, 'stream': True})[1]
        self.assertEqual(headers.get('Transfer-Encoding'), 'chunked', 'it came whole at the end')
        chunks = self.server.stream('/v1/chat/completions', body)
        self.assertEqual(''.join(c['choices'][0]['delta'].get('content') or '' for c in chunks),
                         whole['choices'][0]['message']['content'])

    def test_every_form_of_a_part(self):
        url = data_url(FILES[1])
        want = self.answer(image(url), text())['choices'][0]['token_ids']
        for part in ({'type': 'image_url', 'image_url': {'url': url, 'detail': 'low'}}, {'type': 'image_url', 'image_url': url},
                     {'image_url': url}, {'type': 'input_image', 'image_url': url, 'detail': 'auto'},
                     {'type': 'image', 'image': url}, {'type': 'image', 'url': url}, {'type': 'image', 'image_url': {'url': url}},
                     {'type': 'image_url', 'image_url': {'url': url.replace('data:image/png', 'DATA:IMAGE/Png;x=y')}},
                     {'type': 'image_url', 'image_url': {'url': url.rstrip('=')}},
                     {'type': 'image_url', 'image_url': {'url': url.replace('image/png', 'image/jpeg')}}):
            self.assertEqual(self.answer(part, text())['choices'][0]['token_ids'], want, str(part)[:80])
        for part in ({'type': 'image_url'}, {'type': 'image_url', 'image_url': {}}, {'type': 'image_url', 'image_url': 7},
                     {'type': 'image', 'image': None}, {'type': 'image_url', 'image_url': {'url': None}},
                     {'type': 'input_audio', 'input_audio': {'data': 'x'}}, {'type': 'video_url', 'video_url': {}}, {'type': 7}, 7):
            self.refused(part, text())

    def test_the_other_apis(self):
        """/v1/responses and /v1/messages show the same pictures."""
        want = self.answer(image(FILES[1]), text(), max_tokens=40)
        words = want['choices'][0]['message']['content']
        common = {'model': MODEL, 'temperature': 0}
        response = self.server.ok('/v1/responses', {**common, 'max_output_tokens': 40, 'input': [{'type': 'message', 'role': 'user', 'content': [
            {'type': 'input_image', 'image_url': data_url(FILES[1])}, {'type': 'input_text', 'text': QUESTION}]}]})
        self.assertEqual([part['text'] for item in response['output'] if item['type'] == 'message' for part in item['content']], [words])
        self.assertEqual(response['usage']['input_tokens'], want['usage']['prompt_tokens'])
        again = self.server.ok('/v1/responses', {**common, 'max_output_tokens': 4, 'input': 'And?', 'previous_response_id': response['id']})
        self.assertGreater(again['usage']['input_tokens'], want['usage']['prompt_tokens'])
        block = {'type': 'image', 'source': {'type': 'base64', 'media_type': 'image/png', 'data': base64.b64encode(FILES[1].read_bytes()).decode()}}
        body = {**common, 'max_tokens': 40, 'messages': [{'role': 'user', 'content': [block, text()]}]}
        message = self.server.ok('/v1/messages', body)
        self.assertEqual([part['text'] for part in message['content'] if part['type'] == 'text'], [words])
        count = self.server.ok('/v1/messages/count_tokens', {'model': MODEL, 'messages': body['messages']})
        self.assertEqual(count['input_tokens'], want['usage']['prompt_tokens'])
        block['source']['data'] = base64.b64encode(b'no picture').decode()
        for path, given in (('/v1/messages', body), ('/v1/messages', {**body, 'stream': True})):
            status, _, reply = self.server.ask(path, given)
            self.assertEqual((status, json.loads(reply)['type']), (400, 'error'))

    def test_any_turn(self):
        first = [{'role': 'user', 'content': [image(FILES[0]), text()]}, {'role': 'assistant', 'content': 'A square.'},
                 {'role': 'user', 'content': [text('And here?'), image(FILES[3])]}]
        ids = self.ids(first)
        self.assertEqual(ids.count(IMAGE_PAD), 64 + self.ids([{'role': 'user', 'content': [image(FILES[3])]}]).count(IMAGE_PAD))
        body = {**chat(), 'messages': first}
        once = self.server.ok('/v1/chat/completions', body)
        self.assertEqual(once['usage']['prompt_tokens'], len(ids))
        again = self.server.ok('/v1/chat/completions', {**body, 'skip_reading_prefix_cache': True})
        self.assertEqual(once['choices'][0]['token_ids'], again['choices'][0]['token_ids'])
        tool = [{'role': 'user', 'content': 'Look.'}, {'role': 'tool', 'tool_call_id': 'x', 'content': [image(FILES[0])]}]
        self.assertEqual(self.ids(tool).count(IMAGE_PAD), 64)
        status, _, _ = self.server.ask('/v1/chat/completions', {**body, 'messages': [{'role': 'system', 'content': [image(FILES[0])]}]})
        self.assertEqual(status, 400)

    def test_many_at_once_are_what_they_are_alone(self):
        bodies = [chat(image(FILES[i % 4]), text(), seed=i, temperature=1.0, max_tokens=6) for i in range(12)]
        alone = [self.server.ok('/v1/chat/completions', body)['choices'][0]['token_ids'] for body in bodies]
        with concurrent.futures.ThreadPoolExecutor(12) as pool:
            together = list(pool.map(lambda body: self.server.ok('/v1/chat/completions', body), bodies))
        self.assertEqual([reply['choices'][0]['token_ids'] for reply in together], alone)

    def test_run_batch(self):
        lines = [{'custom_id': str(i), 'method': 'POST', 'url': '/v1/chat/completions', 'body': chat(image(f), text())}
                 for i, f in enumerate(FILES[:2])]
        lines.append({**lines[0], 'custom_id': 'text only', 'body': chat(image('http://127.0.0.1:9/x.png'), text())})
        given = '\n'.join(json.dumps(line) for line in lines)
        for model, right in ((MODEL, 2), ('demo:bailing', 0)):
            done = subprocess.run([serve_harness.PROGRAM, 'run-batch', model, '-i', '-', '-o', '-', '--served-model-name', MODEL],
                                  input=given, capture_output=True, text=True, env=ENVIRONMENT, check=True)
            answers = [json.loads(line) for line in done.stdout.splitlines()]
            self.assertEqual(len(answers), 3)
            for i, answer in enumerate(answers):
                if i < right:
                    choice = answer['response']['body']['choices'][0]
                    self.assertEqual(choice['token_ids'], self.answer(image(FILES[i]), text())['choices'][0]['token_ids'])
                else:
                    self.assertIsNotNone(answer['error'])

    def test_a_server_without_free_files_says_so(self):
        video = {'type': 'video_url', 'video_url': {'url': data_url(b'no video', 'video/mp4')}}
        local = image('file://' + str(self.folder / 'media' / 'a%20b.png'))
        process = self.server.process.pid
        usual = resource.prlimit(process, resource.RLIMIT_NOFILE)
        for part, told in ((video, 'no room for a video'), (local, 'cannot open a file')):
            connection = self.server.connect()
            connection.request('GET', '/health')  # it is accepted before there are no more
            connection.getresponse().read()
            used = {int(name) for name in os.listdir(f'/proc/{process}/fd')}
            resource.prlimit(process, resource.RLIMIT_NOFILE, (min(set(range(len(used) + 1)) - used), usual[1]))
            try:
                connection.request('POST', '/v1/chat/completions', json.dumps(chat(part, text())))
                reply = connection.getresponse()
                body = reply.read().decode()
            finally:
                resource.prlimit(process, resource.RLIMIT_NOFILE, usual)
                connection.close()
            self.assertEqual((reply.status, told in body), (503, True), body)

    # videos

    def test_frames_are_what_generate_reads_from_a_folder(self):
        frames = [one_colour(96, 64, bytes([40 * i, 90, 200 - 30 * i])) for i in range(5)]
        folder = self.folder / 'frames'
        folder.mkdir()
        for i, frame in enumerate(frames):
            (folder / f'{i}.png').write_bytes(frame)
        mine = generate('--video', str(folder), '--video-fps', '2', QUESTION)
        video = 'data:video/jpeg;base64,' + ','.join(base64.b64encode(frame).decode() for frame in frames)
        for part in ({'type': 'video_url', 'video_url': {'url': video}}, {'type': 'video', 'video': video}):
            self.assertEqual(self.ids([{'role': 'user', 'content': [part, text()]}]), mine['prompt_token_ids'])
            self.assertEqual(self.answer(part, text())['choices'][0]['token_ids'], mine['token_ids'])
        part = {'type': 'video_url', 'video_url': {'url': video}}
        few = self.ids([{'role': 'user', 'content': [part, text()]}], mm_processor_kwargs={'num_frames': 2})
        self.assertEqual(few.count(VIDEO_PAD) * 3, mine['prompt_token_ids'].count(VIDEO_PAD))
        self.assertIn('at most 1', self.refused(part, part, text())['message'])
        for broken in (video[:-8] + '####', video + ',', 'data:video/jpeg;base64,', video.split(',')[0] + ',' + video.split(',')[1],
                       video + ',' + base64.b64encode(one_colour(32, 32)).decode(), data_url(b'no video', 'video/mp4')):
            self.refused({'type': 'video_url', 'video_url': {'url': broken}}, text())

    # how pictures are prepared

    def test_mm_processor_kwargs(self):
        def pads(**kwargs):
            return self.ids(chat(image(FILES[0]), text())['messages'], mm_processor_kwargs=kwargs).count(IMAGE_PAD)
        self.assertEqual(pads(), 64)
        self.assertEqual(pads(min_pixels=16384, max_pixels=16384), 16)
        self.assertEqual(pads(size={'shortest_edge': 16384, 'longest_edge': 16384}), 16)
        for kwargs in ({'max_pixels': 1 << 26}, {'max_pixels': 'x'}, {'max_pixels': -1}, {'patch_size': 8}, {'do_resize': False},
                       {'max_pixels': 1}, {'size': 7}, {'max_frames': 4096}, {'num_frames': 1 << 15}):
            self.refused(image(FILES[0]), text(), mm_processor_kwargs=kwargs)
        self.refused(image(FILES[0]), text(), mm_processor_kwargs=7)

    def test_equal_bytes_prepared_otherwise_share_nothing(self):
        """C10b: the same file at two sizes, and one colour in two shapes of as many tokens."""
        def cached(part, **kwargs):
            reply = self.answer(part, text('What is it? ' * 8), mm_processor_kwargs=kwargs)
            return reply['usage']['prompt_tokens_details']['cached_tokens'], reply['choices'][0]['token_ids']
        small = {'min_pixels': 16384, 'max_pixels': 16384}
        colour = random.Random(1).randbytes(3)
        wide, tall = one_colour(512, 256, colour), one_colour(256, 512, colour)
        before = [self.server.metric(name) for name in ('vllm:mm_cache_queries_total', 'vllm:mm_cache_hits_total')]
        firsts = []
        for part, kwargs in ((image(wide), {}), (image(tall), {}), (image(wide), small), (image(tall), small)):
            count, tokens = cached(part, **kwargs)
            self.assertLess(count, 8, 'more than what stands before the picture came from another one')
            firsts.append(tokens)
        after = [self.server.metric(name) for name in ('vllm:mm_cache_queries_total', 'vllm:mm_cache_hits_total')]
        self.assertEqual([b - a for a, b in zip(before, after)], [4, 0])
        for (part, kwargs), tokens in zip(((image(wide), {}), (image(tall), {}), (image(wide), small), (image(tall), small)), firsts):
            count, again = cached(part, **kwargs)
            self.assertGreater(count, 8)
            self.assertEqual(again, tokens)

    # hostile pictures

    def test_bombs_and_broken_pictures(self):
        """C4: 300 files that are refused; memory does not follow what their headers say."""
        good = FILES[0].read_bytes()
        noise = random.Random(4)
        sizes = [60000, 65535, 65536, 1 << 20, (1 << 31) - 1, (1 << 32) - 1, 20000]
        bombs = [png(0, 0, header=struct.pack('>IIBBBBB', w, h, 8, 2, 0, 0, 0)) for w, h in itertools.product(sizes, sizes)]
        bombs += [png(0, 0, header=struct.pack('>IIBBBBB', w, 0, 8, 2, 0, 0, 0)) for w in sizes]
        bombs += [b'\xff\xd8\xff\xc0\x00\x11\x08' + struct.pack('>HH', h, w) + b'\x03\x01\x11\x00\x02\x11\x00\x03\x11\x00'
                  for w, h in itertools.product((60000, 65500, 30000), (60000, 65500, 30000))]
        bombs += [b'GIF89a' + struct.pack('<HH', w, 65535) + b'\x80\0\0' for w in (65535, 40000, 0)]
        bombs += [b'RIFF\x20\0\0\0WEBPVP8L\x10\0\0\0/' + bytes([noise.randrange(256) for _ in range(20)]) for _ in range(10)]
        bombs += [good[:cut] for cut in range(0, len(good) - 12, 12)]
        bombs += [bytes(noise.randrange(256) for _ in range(noise.randrange(200))) for _ in range(80)]
        bombs += [b'<svg xmlns="http://www.w3.org/2000/svg"/>', b'BM' + bytes(60), b'II*\0' + bytes(60), b'%PDF-1.7', b'\0']
        bombs += [png(300, 1, b'\0' + bytes(900))]  # thinner than any model takes
        while len(bombs) < 300:
            broken = bytearray(good)
            broken[noise.randrange(8)] ^= 1 + noise.randrange(255)
            bombs.append(bytes(broken))
        peak = self.peak_memory()
        for i, bomb in enumerate(bombs):
            status, _, reply = self.server.ask('/v1/chat/completions', chat(image(bomb), text()))
            self.assertEqual(status, 400, f'bomb {i}: {reply[:200]}')
            self.assertNotIn(b'/', json.loads(reply)['error']['message'].encode().replace(b'image/png', b''))
        self.assertLess(self.peak_memory() - peak, 300 << 20)
        self.answer(image(FILES[0]), text())

    def peak_memory(self):
        if os.uname().sysname != 'Linux':
            self.skipTest('no /proc')
        status = pathlib.Path(f'/proc/{self.server.process.pid}/status').read_text()
        return int(status.split('VmHWM:')[1].split()[0]) << 10

    def test_odd_pictures(self):
        for content in (one_colour(1, 1), one_colour(1, 150), one_colour(150, 1), (ROOT / 'tests/images/cmyk.jpg').read_bytes(),
                        (ROOT / 'tests/images/grey_16_interlaced.png').read_bytes(), (ROOT / 'tests/images/animated.webp').read_bytes(),
                        (ROOT / 'tests/images/orientation_6.jpg').read_bytes(), (ROOT / 'tests/images/static.gif').read_bytes()):
            self.answer(image(content), text(), max_tokens=2)

    def test_limits(self):
        self.assertIn('at most 3', self.refused(*[image(FILES[0])] * 4, text())['message'])
        self.assertEqual(self.refused(image(one_colour(2000, 1200)), text())['code'], 'context_length_exceeded')
        self.refused(image(FILES[0]), text(), truncate_prompt_tokens=20)

    def test_what_is_no_data_url(self):
        for url in ('', 'data:', 'data:,x', 'data:image/png,x', 'data:image/png;base64', 'data:image/png;base64,#', 'x', 'blob:x',
                    'data:image/png;base64,A', 'data:image/png;base64,AA=A', data_url(FILES[0]) + '=', data_url(FILES[0]).replace(',', ',\n')):
            self.refused({'type': 'image_url', 'image_url': {'url': url}}, text())

    # text is text

    def test_placeholders_in_a_users_text(self):
        """C6: every special token as a user writes it, beside zero to three pictures."""
        tokens = [token['content'] for token in json.loads((ROOT / 'demo/demo-qwen3_5/tokenizer.json').read_text())['added_tokens']]
        noise = random.Random(6)
        specials = {token['id'] for token in json.loads((ROOT / 'demo/demo-qwen3_5/tokenizer.json').read_text())['added_tokens']}
        for count in range(4):
            pictures = [image(FILES[0])] * count
            plain = [i for i in self.ids([{'role': 'user', 'content': [*pictures, text('x')]}]) if i in specials]
            for case in range(500 if FULL else 60):
                words = ''.join(noise.choice(tokens) + noise.choice(['', ' ', 'a', '\n']) for _ in range(noise.randrange(1, 12)))
                parts = [*pictures, text(words)]
                noise.shuffle(parts)
                ids = self.ids([{'role': 'user', 'content': parts if case % 2 or count else words}])
                self.assertEqual([i for i in ids if i in specials], plain, words)
        self.answer(image(FILES[0]), text('<|image_pad|><|vision_start|><|video_pad|>' + QUESTION), max_tokens=2)
        for prompt in ('<|image_pad|>', 'a <|vision_start|><|video_pad|><|vision_end|>', [1, 2, IMAGE_PAD], [[1], [VIDEO_PAD]]):
            status, _, reply = self.server.ask('/v1/completions', {'model': MODEL, 'prompt': prompt, 'max_tokens': 2})
            self.assertEqual(status, 400, reply)
            self.assertIn('placeholder', json.loads(reply)['error']['message'])

    # what the server fetches

    def test_urls_of_this_machine_are_not_fetched_even_when_allowed(self):
        for host in self.hosts:
            for scheme in ('http', 'https'):
                error = self.refused(image(f'{scheme}://{host}/x.png'), text())
                self.assertEqual(error['code'], 'invalid_url', error)
        for url in ('http://169.254.169.254/latest', 'http://example.com/x.png', 'ftp://localhost/x', 'http://user@' + self.hosts[0] + '/'):
            self.assertEqual(self.refused(image(url), text())['code'], 'invalid_url')
        with self.assertRaises(BlockingIOError):  # nobody has connected
            self.listener.accept()

    def test_local_files(self):
        media = 'file://' + str(self.folder / 'media')
        want = self.answer(image(FILES[0]), text())['choices'][0]['token_ids']
        self.assertEqual(self.answer(image(media + '/a%20b.png'), text())['choices'][0]['token_ids'], want)
        for url in (media + '/escape.png', media + '/../outside.png', f'file://{self.folder}/outside.png', 'file:///etc/passwd', media):
            error = self.refused(image(url), text())
            self.assertEqual(error['code'], 'invalid_url')
            self.assertNotIn(str(self.folder), error['message'])

    def test_clients_that_leave(self):
        """The server gives up their pictures, and ends as it should (tearDownClass)."""
        payload = json.dumps(chat(image(one_colour(700, 700)), text(), max_tokens=400, ignore_eos=True)).encode()
        head = b'POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n' % len(payload)
        for _ in range(20):
            with socket.create_connection(('127.0.0.1', self.server.port), timeout=60) as one:
                one.sendall(head + payload)
        self.assertTrue(self.server.until(lambda: self.server.ok('/load')['server_load'] == 0))
        self.answer(image(FILES[0]), text())


class End(unittest.TestCase):
    def test_pictures_that_wait_at_the_end_are_refused(self):
        """Others do not wait behind them; at the end everybody gets a whole answer."""
        server = Server('--shutdown-timeout', '0', '--limit-mm-per-prompt', '{"image": 100}')
        kept = server.ok('/v1/responses', {'model': MODEL, 'input': 'What is 2 + 3?', 'max_output_tokens': 16})
        many = chat(*[image(one_colour(3000, 3000))] * 40, text(), mm_processor_kwargs={'min_pixels': 1024, 'max_pixels': 4096})
        with concurrent.futures.ThreadPoolExecutor(12) as pool:
            pictures = [pool.submit(server.ask, '/v1/chat/completions', many) for _ in range(12)]
            tool = {'type': 'function', 'name': 'show', 'parameters': {'type': 'object', 'properties': {'image_url': {'type': 'string'}}}}
            server.ok('/v1/responses', {'model': MODEL, 'input': 'And 3 + 4?', 'previous_response_id': kept['id'], 'max_output_tokens': 4, 'tools': [tool]})
            # All have been read, and the last ones must wait for the first.
            self.assertTrue(server.until(lambda: server.metric('calandra:http_requests_total') >= len(pictures) + 2))
            server.process.terminate()
            replies = [one.result() for one in pictures]
        self.assertEqual(server.end(), 0)
        self.assertLessEqual({status for status, _, _ in replies}, {200, 503})
        refused = [json.loads(reply)['error']['message'] for status, _, reply in replies if status == 503]
        self.assertIn('the server is shutting down', refused)


class WithoutTower(unittest.TestCase):
    def test_text_only(self):
        server = Server('--language-model-only')
        try:
            status, _, reply = server.ask('/v1/chat/completions', chat(image(FILES[0]), text()))
            self.assertEqual(status, 400)
            self.assertIn('text only', json.loads(reply)['error']['message'])
            self.assertTrue(server.ok('/v1/chat/completions', chat(text('What is 2 + 3?')))['choices'])
        finally:
            self.assertEqual(server.end(), 0)

    def test_flags_that_are_wrong(self):
        for flags, words in ((('--allowed-media-domains', 'https://a.example/'), 'is no host name'),
                             (('--allowed-media-domains', '*.a.example'), 'is no host name'),
                             (('--allowed-local-media-path', '/none'), 'is no folder'),
                             (('--limit-mm-per-prompt', '{"image": -1}'), 'whole number'),
                             (('--limit-mm-per-prompt', '{"audio": 1}'), 'not supported'),
                             (('--mm-processor-kwargs', '{"max_pixels": "x"}'), 'max_pixels')):
            done = subprocess.run([serve_harness.PROGRAM, 'serve', '--port', '0', *flags], capture_output=True, text=True,
                                  env=ENVIRONMENT, timeout=120)
            self.assertNotEqual(done.returncode, 0)
            self.assertIn(words, done.stderr)


if __name__ == '__main__':
    serve_harness.PROGRAM = sys.argv.pop(1)
    if '--full' in sys.argv:
        FULL = True
        sys.argv.remove('--full')
    sys.exit(gtest_report.main())
