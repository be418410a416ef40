#!/usr/bin/env python3
"""`calandra bench serve` against `calandra serve`, and against a server that does what servers should not.

    bench_serve_test.py PROGRAM

Nothing is asserted about time.
"""
import json
import os
import socketserver
import subprocess
import sys
import tempfile
import threading
import unittest

import gtest_report
import serve_harness
from serve_harness import MODEL, Server


def bench(url, *flags, status=0, key=None):
    """The result line of a run."""
    environment = {name: value for name, value in serve_harness.ENVIRONMENT.items() if name not in ('CALANDRA_THREADS', 'CALANDRA_BACKEND', 'OPENAI_API_KEY')}
    if key:
        environment['OPENAI_API_KEY'] = key
    done = subprocess.run([serve_harness.PROGRAM, 'bench', 'serve', '--base-url', url, '--seed', '1', *flags], capture_output=True, text=True,
                          timeout=120, env=environment)
    assert done.returncode == status, (done.returncode, done.stdout, done.stderr)
    return json.loads(done.stdout) if '--json' in flags and done.stdout else done.stdout + done.stderr


class OddServer(socketserver.ThreadingTCPServer):
    """Gives request number i the answer `answers[i % n]`: bytes, or a function of the connection."""
    daemon_threads = True
    allow_reuse_address = True

    def __init__(self, *answers):
        super().__init__(('127.0.0.1', 0), OddHandler)
        self.answers, self.bodies, self.lock = answers, [], threading.Lock()
        self.url = f'http://127.0.0.1:{self.server_address[1]}'
        threading.Thread(target=self.serve_forever, daemon=True).start()

    def close(self):
        self.shutdown()
        self.server_close()


class OddHandler(socketserver.StreamRequestHandler):
    def handle(self):
        head = b''
        while not head.endswith(b'\r\n\r\n'):
            line = self.rfile.readline()
            if not line:
                return
            head += line
        length = next((int(line.split(b':')[1]) for line in head.split(b'\r\n') if line.lower().startswith(b'content-length:')), 0)
        body = self.rfile.read(length)
        with self.server.lock:
            number = len(self.server.bodies)
            self.server.bodies.append(json.loads(body) if body else None)
        answer = self.server.answers[number % len(self.server.answers)]
        try:
            self.wfile.write(answer) if isinstance(answer, bytes) else answer(self)
        except OSError:
            pass  # the client has seen enough


HEAD = b'HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nConnection: close\r\n\r\n'


def event(value, end=b'\n\n'):
    return b'data: ' + (value if isinstance(value, bytes) else json.dumps(value).encode()) + end


def token(text, **more):
    return event({'choices': [{'index': 0, 'text': text}], **more})


USAGE = event({'choices': [], 'usage': {'prompt_tokens': 7, 'completion_tokens': 5, 'total_tokens': 12}})
GOOD = HEAD + token('a') + token('b') + USAGE + event(b'[DONE]')


def plain(status, content_type, body):
    return (f'HTTP/1.1 {status}\r\nContent-Type: {content_type}\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n' + body).encode()


class RealServer(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.server = Server('--max-num-seqs', '8')
        cls.url = f'http://127.0.0.1:{cls.server.port}'

    @classmethod
    def tearDownClass(cls):
        assert cls.server.end() == 0

    def run_and_count(self, *flags):
        names = ('vllm:prompt_tokens_total', 'vllm:generation_tokens_total')
        before = [self.server.metric(name) for name in names]
        line = bench(self.url, '--json', '--ignore-eos', *flags)
        told = [line['total_input_tokens'], line['total_output_tokens']]
        # Metrics may be a step behind.
        self.assertTrue(self.server.until(lambda: [self.server.metric(name) - old for name, old in zip(names, before)] == told), told)
        self.assertEqual((line['failed'], line['error_counts'], line['model_id']), (0, {}, MODEL))
        return line

    def test_random(self):
        for endpoint in ('/v1/completions', '/v1/chat/completions'):
            line = self.run_and_count('--endpoint', endpoint, '--num-prompts', '12', '--input-len', '9', '--output-len', '6',
                                      '--max-concurrency', '4', '--goodput', 'ttft:100000,e2el:1000000')
            self.assertEqual((line['completed'], line['total_output_tokens'], line['max_concurrency']), (12, 72, 4))
            self.assertEqual(line['request_goodput'], line['request_throughput'])
            for name in ('ttft', 'tpot', 'itl', 'e2el'):
                for kind in ('mean', 'median', 'std', 'p99'):
                    self.assertGreaterEqual(line[f'{kind}_{name}_ms'], 0)
            self.assertLessEqual(line['mean_ttft_ms'], line['mean_e2el_ms'])
            self.assertAlmostEqual(line['output_throughput'] * line['duration'], 72)

    def test_open_loop(self):
        line = self.run_and_count('--num-prompts', '10', '--input-len', '4', '--output-len', '3', '--request-rate', '50', '--burstiness', '0.5',
                                  '--save-detailed', '--random-range-ratio', '0.5')
        self.assertEqual((line['completed'], line['request_rate'], line['burstiness']), (10, 50, 0.5))
        self.assertTrue(all(1 <= n <= 5 for n in line['output_lens']), line['output_lens'])
        self.assertEqual(sorted(line['start_times']), line['start_times'])
        self.assertGreater(len(set(line['start_times'])), 1)

    def test_shared_beginnings(self):
        line = self.run_and_count('--dataset-name', 'prefix_repetition', '--num-prompts', '8', '--num-prefixes', '2', '--prefix-len', '120',
                                  '--input-len', '5', '--output-len', '3', '--max-concurrency', '1')
        self.assertGreater(line['total_cached_tokens'], 0)

    def test_agent(self):
        for endpoint in ('/v1/completions', '/v1/chat/completions'):
            line = self.run_and_count('--endpoint', endpoint, '--dataset-name', 'agent', '--num-prompts', '2', '--num-turns', '3', '--prefix-len', '40',
                                      '--input-len', '6', '--output-len', '4', '--save-detailed')
            self.assertEqual((line['completed'], line['total_output_tokens']), (6, 24))
            self.assertGreater(line['total_cached_tokens'], 0)
            lengths = line['input_lens']
            self.assertTrue(lengths[0] < lengths[1] < lengths[2] and lengths[3] < lengths[4] < lengths[5], lengths)

    def test_keys(self):
        server = Server('--api-key', 'secret')
        url = f'http://127.0.0.1:{server.port}'
        try:
            flags = ('--num-prompts', '2', '--input-len', '3', '--output-len', '2')
            self.assertEqual(bench(url, '--json', *flags, key='secret')['completed'], 2)
            self.assertRegex(bench(url, *flags, status=1), 'status 401: .*OPENAI_API_KEY')
            line = bench(url, '--json', '--model', MODEL, *flags, status=1, key='wrong')
            self.assertEqual((line['completed'], line['failed'], list(line['error_counts'].values())), (0, 2, [2]))
            self.assertRegex(list(line['error_counts'])[0], 'status 401: .*OPENAI_API_KEY')
        finally:
            server.end()

    def test_a_wrong_model_is_an_error_of_each(self):
        text = bench(self.url, '--model', 'other', '--num-prompts', '3', '--input-len', '3', status=1)
        self.assertIn('FAILED    3 requests', text)
        self.assertIn('3 x status 404', text)


class OddServers(unittest.TestCase):
    def run_odd(self, answers, *flags, status=1):
        """One request for each answer, unless the flags choose a dataset."""
        if '--dataset-name' not in flags:
            flags = (*flags, '--num-prompts', str(len(answers)), '--input-len', '2')
        server = OddServer(*answers)
        try:
            return server, bench(server.url, '--model', 'm', '--max-concurrency', '1', '--json', *flags, status=status)
        finally:
            server.close()

    def test_faults_are_counted(self):
        answers = {
            'status 503: full up': plain('503 Busy', 'application/json', '{"error": {"message": "full up"}}'),
            'status 500: "<b>no</b>"': plain('500 Oh', 'text/html', '<b>no</b>'),
            'the server did not stream, but sent "application/json"': plain('200 OK', 'application/json', '{"choices": []}'),
            'the stream ended before [DONE]': HEAD + token('a'),
            'an error in the stream: broken': HEAD + token('a') + event({'error': {'message': 'broken'}}) + event(b'[DONE]'),
            'an event of the stream is no JSON': HEAD + event(b'{"choices": [') + event(b'[DONE]'),
            'the answer has no token': HEAD + event(b'[DONE]'),
            'end of stream': b'',
            'bad version': b'SPDY/9 yes\r\n\r\n',
            'partial message': b'HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nContent-Length: 9999\r\n\r\n' + token('a') + event(b'[DONE]')}
        _, line = self.run_odd([*answers.values(), GOOD])
        self.assertEqual(line['error_counts'], {message: 1 for message in answers})
        self.assertEqual((line['completed'], line['failed'], line['total_output_tokens']), (1, len(answers), 5))

    def test_a_silent_server_times_out(self):
        release = threading.Event()
        _, line = self.run_odd([lambda _: release.wait(60), lambda one: (one.wfile.write(HEAD + token('a')), release.wait(60))], '--timeout', '1')
        release.set()
        self.assertEqual(line['error_counts'], {'timed out': 2})

    def test_streams_of_all_shapes(self):
        crlf = HEAD + (b': ping\n\nretry: 5\n' + token('a') + token('b') + USAGE + event(b'[DONE]')).replace(b'\n', b'\r\n')
        chunks = b''.join(b'%x\r\n%s\r\n' % (len(part), part) for part in (GOOD[len(HEAD):][i:i + 3] for i in range(0, len(GOOD) - len(HEAD), 3)))
        chunked = HEAD.replace(b'Connection: close', b'Transfer-Encoding: chunked') + chunks + b'0\r\n\r\n'
        no_spaces = HEAD + GOOD[len(HEAD):].replace(b'data: ', b'data:')

        def byte_by_byte(one):
            for i in range(len(GOOD)):
                one.wfile.write(GOOD[i:i + 1])
                one.wfile.flush()
        server, line = self.run_odd([GOOD, crlf, chunked, no_spaces, byte_by_byte], '--extra-body', '{"temperature": 0, "top_k": 1}', status=0)
        self.assertEqual((line['completed'], line['total_input_tokens'], line['total_output_tokens']), (5, 35, 25))
        for body in server.bodies:
            self.assertEqual({key: body[key] for key in ('model', 'stream', 'stream_options', 'temperature', 'top_k', 'max_tokens')},
                             {'model': 'm', 'stream': True, 'stream_options': {'include_usage': True}, 'temperature': 0, 'top_k': 1, 'max_tokens': 128})
            self.assertEqual(len(body['prompt'].split()), 2)

    def test_without_usage_parts_are_counted(self):
        chat = [{'role': 'assistant', 'content': ''}, {'reasoning_content': 'x'}, {'content': 'y'}, {'tool_calls': [{'index': 0}]}, {}]
        answer = HEAD + b''.join(event({'choices': [{'index': 0, 'delta': delta}]}) for delta in chat) + event(b'[DONE]')
        _, line = self.run_odd([answer], '--endpoint', '/v1/chat/completions', '--save-detailed', status=0)
        self.assertEqual((line['output_lens'], len(line['itls'][0])), ([3], 2))

    def test_so_many_at_once(self):
        together, lock, counts = threading.Barrier(3), threading.Lock(), [0, 0]  # now, most

        def answer(one):
            with lock:
                counts[0] += 1
                counts[1] = max(counts)
            together.wait(60)  # fewer at once would wait for ever
            one.wfile.write(GOOD)
            with lock:
                counts[0] -= 1  # before the connection closes, which ends the answer
        server = OddServer(answer)
        line = bench(server.url, '--model', 'm', '--num-prompts', '12', '--input-len', '2', '--max-concurrency', '3', '--json')
        server.close()
        self.assertEqual((line['completed'], counts[1]), (12, 3))

    def test_a_conversation_ends_with_its_first_fault(self):
        server, line = self.run_odd([GOOD, b''], '--dataset-name', 'agent', '--num-turns', '4', '--num-prompts', '1')
        self.assertEqual((line['completed'], line['failed'], len(server.bodies)), (1, 1, 2))

    def test_files(self):
        talk = {'conversations': [{'from': 'human', 'value': 'Hi?'}, {'from': 'gpt', 'value': 'x' * 40}]}
        rows = [talk, {'conversations': [{'from': 'human', 'value': 'alone'}]}, {'prompt': 'P', 'output_len': 3}]
        with tempfile.TemporaryDirectory() as folder:
            for name, text in (('a.json', json.dumps(rows)), ('b.jsonl', '\n'.join(map(json.dumps, rows)) + '\n')):
                path = os.path.join(folder, name)
                with open(path, 'w') as file:
                    file.write(text)
                server, line = self.run_odd([GOOD] * 4, '--dataset-name', 'sharegpt', '--dataset-path', path, '--num-prompts', '4', status=0)
                self.assertEqual(sorted((body['prompt'], body['max_tokens']) for body in server.bodies), [('Hi?', 10)] * 2 + [('P', 3)] * 2)
                saved = os.path.join(folder, 'out.json')
                server = OddServer(GOOD)
                bench(server.url, '--model', 'm', '--num-prompts', '2', '--input-len', '2', '--save-result', '--result-filename', saved)
                server.close()
                with open(saved) as file:
                    self.assertEqual(json.load(file)['completed'], 2)
                server = OddServer(GOOD)
                deeper = os.path.join(folder, 'new', name)
                said = bench(server.url, '--model', 'm', '--num-prompts', '1', '--input-len', '2', '--save-result', '--result-dir', deeper)
                server.close()
                written, = os.listdir(deeper)
                self.assertRegex(written, r'^bench-serve-.*\.json$')
                self.assertIn(f'the result is in {deeper}/{written}', said)
            server = OddServer(GOOD)
            deeper = os.path.join(folder, 'newer', 'out.json')
            bench(server.url, '--model', 'm', '--num-prompts', '1', '--input-len', '2', '--save-result', '--result-filename', deeper)
            self.assertTrue(os.path.getsize(deeper))
            asked = len(server.bodies)
            said = bench(server.url, '--model', 'm', '--num-prompts', '1', '--input-len', '2', '--save-result', '--result-filename', saved + '/x',
                         status=1)
            self.assertIn(f'cannot write {saved}/x', said)
            self.assertEqual(len(server.bodies), asked)  # before the load
            server.close()
            with open(path, 'w') as file:
                file.write('{"prompt": 5}')
            self.assertIn('row 1: prompt must be a text', bench('http://127.0.0.1:1', '--model', 'm', '--dataset-name', 'sharegpt', '--dataset-path', path, status=1))

    def test_usage(self):
        for flags, message in ((('--burstiness', '2'), '--burstiness is for --request-rate'), (('--goodput', 'x:1'), '--goodput must be'),
                               (('--dataset-name', 'sharegpt'), 'go together'), (('--result-filename', 'x'), 'needs --save-result'),
                               (('--result-dir', 'x'), 'needs --save-result')):
            self.assertIn(message, bench('http://127.0.0.1:1', *flags, status=2))
        for url in ('127.0.0.1:8000', 'ftp://x', 'http://', 'http://x:y', 'http://a@b'):
            self.assertIn('is no address', bench(url, status=2))
        self.assertIn('efused', bench('http://127.0.0.1:1', status=1))


if __name__ == '__main__':
    serve_harness.PROGRAM = sys.argv.pop(1)
    sys.exit(gtest_report.main())
