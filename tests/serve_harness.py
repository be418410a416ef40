"""What Python tests of `calandra serve` share: a server of the built program on a free port, and bodies of requests.

    import serve_harness
    serve_harness.PROGRAM = sys.argv.pop(1)
    server = serve_harness.Server('--max-num-seqs', '4')
"""
import http.client
import json
import os
import pathlib
import re
import shutil
import signal
import socket
import subprocess
import tempfile
import time

ROOT = pathlib.Path(__file__).resolve().parent.parent
CHECKS = ROOT.parent / 'shared' / 'oracle' / 'text' / 'api'
PROGRAM = ''
ENVIRONMENT = {**os.environ, 'CALANDRA_DEMO_DIR': str(ROOT / 'demo'), 'CALANDRA_THREADS': '1', 'CALANDRA_BACKEND': 'cpu'}
ENVIRONMENT.pop('VLLM_API_KEY', None)
MODEL = 'demo:qwen3_5'
# For answers that must still run when something happens to them: none of so many tokens is at its end by then.
LONGEST = 32768
LONG = {'max_tokens': 32000, 'ignore_eos': True}


def make_certificate(folder):
    """For localhost: the files of the certificate and of its key, or None where there is no openssl."""
    if not shutil.which('openssl'):
        return None
    certificate, key = folder + '/cert.pem', folder + '/key.pem'
    subprocess.run(['openssl', 'req', '-x509', '-newkey', 'rsa:2048', '-nodes', '-keyout', key, '-out', certificate, '-days', '2',
                    '-subj', '/CN=localhost', '-addext', 'subjectAltName=DNS:localhost'], check=True, capture_output=True)
    return certificate, key


def model_with_template(template):
    """A new folder with the demo model under this chat template."""
    folder = pathlib.Path(tempfile.mkdtemp(prefix='calandra_template_'))
    for file in (ROOT / 'demo' / 'demo-qwen3_5').iterdir():
        if file.name != 'chat_template.jinja':
            (folder / file.name).symlink_to(file)
    (folder / 'chat_template.jinja').write_text(template)
    return folder


class Server:
    """A server on a free port; its log and its access lines are kept."""

    def __init__(self, *flags, program=(), port=0, longest=2048, json_lines=True, ready=True):
        """`program`: the words before `serve`, instead of PROGRAM. `port`: one that an ended server had. `longest`: --max-model-len.
        `json_lines`: --json; else access lines are texts of the log. Not `ready`: one that listens will do."""
        self.folder = tempfile.mkdtemp(prefix='calandra_server_')
        self.log_path, self.access_path = (os.path.join(self.folder, name) for name in ('log', 'access'))
        with open(self.log_path, 'w') as log, open(self.access_path, 'w') as access:
            flags = ('--json', *flags) if json_lines else flags
            self.process = subprocess.Popen([*(program or [PROGRAM]), 'serve', '--port', str(port), '--max-model-len', str(longest), *flags],
                                            stdout=access, stderr=log, env=ENVIRONMENT)
        for _ in range(1200):
            found = re.search(r'serving .* on https?://\S+:(\d+)' if ready else r'loading .*; https?://\S+:(\d+)/health', self.log())
            if found:
                self.port = int(found.group(1))
                return
            if self.process.poll() is not None:
                break
            time.sleep(0.05)
        raise RuntimeError('the server did not start: ' + self.log())

    def log(self):
        return pathlib.Path(self.log_path).read_text()

    def access(self):
        return [json.loads(line) for line in pathlib.Path(self.access_path).read_text().splitlines()]

    def connect(self):
        return http.client.HTTPConnection('127.0.0.1', self.port, timeout=120)

    def ask(self, path, body=None, method=None, headers=None):
        connection = self.connect()
        data = body if isinstance(body, (bytes, type(None))) else json.dumps(body).encode()
        connection.request(method or ('GET' if body is None else 'POST'), path, data, headers or {})
        reply = connection.getresponse()
        text = reply.read()
        connection.close()
        return reply.status, dict(reply.getheaders()), text

    def ok(self, path, body=None):
        status, _, text = self.ask(path, body)
        if status != 200:
            raise AssertionError(f'{path}: {status} {text[:300]}')
        return json.loads(text)

    def stream(self, path, body):
        """The events' data of a stream; each must be whole UTF-8 by itself."""
        status, headers, text = self.ask(path, {**body, 'stream': True})
        assert status == 200 and headers['Content-Type'] == 'text/event-stream', (status, headers, text[:300])
        events = [block[6:].decode('utf-8') for block in text.split(b'\n\n') if block.startswith(b'data: ')]
        assert events[-1] == '[DONE]', events[-1]
        return [json.loads(event) for event in events[:-1]]

    def raw(self, data, half=False):
        """What comes back for these bytes until the server closes."""
        with socket.create_connection(('127.0.0.1', self.port), timeout=120) as one:
            try:
                one.sendall(data)
                if half:
                    one.shutdown(socket.SHUT_WR)
                parts = []
                while part := one.recv(65536):
                    parts.append(part)
                return b''.join(parts)
            except ConnectionError:
                return b''

    def memory(self, name):
        """A number of bytes that /proc says of the process."""
        return int(re.search(name + r':\s+(\d+)', pathlib.Path(f'/proc/{self.process.pid}/status').read_text()).group(1)) << 10

    def resident_bytes(self):
        return self.memory('RssAnon')  # what is mapped from files comes and goes as the system likes

    def most_resident_bytes(self):
        return self.memory('VmHWM')

    def metric(self, name, labels=''):
        text = self.ask('/metrics')[2].decode()
        found = re.search(r'^' + re.escape(name) + r'\{[^}]*' + re.escape(labels) + r'[^}]*\} (\S+)$', text, re.M)
        return float(found.group(1))

    def until(self, condition):
        for _ in range(600):
            if condition():
                return True
            time.sleep(0.05)
        return False

    def end(self, number=signal.SIGTERM):
        if self.process.poll() is None:
            self.process.send_signal(number)
        status = self.process.wait(timeout=120)
        shutil.rmtree(self.folder, ignore_errors=True)
        return status


def completion(**body):
    return {'model': MODEL, 'prompt': 'Once upon a time', 'temperature': 0, 'max_tokens': 24, **body}


def chat(**body):
    return {'model': MODEL, 'messages': [{'role': 'user', 'content': 'What is 2 + 3?'}], 'temperature': 0, 'max_tokens': 24, **body}
