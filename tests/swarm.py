"""Thousands of HTTP clients on one thread, over loopback: each sends its bytes, keeps what comes, and leaves as it was told.

    clients = [Client(post('/v1/completions', body)) for body in bodies]
    Swarm(port, at_once=64).run(clients)
    status, headers, body = parse(clients[0].reply)
"""
import json
import selectors
import socket
import struct
import time


def post(path, body, *headers):
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    lines = [f'POST {path} HTTP/1.1', 'Host: x', 'Connection: close', f'Content-Length: {len(data)}', *headers]
    return '\r\n'.join(lines).encode() + b'\r\n\r\n' + data


def get(path):
    return f'GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n'.encode()


class Client:
    """leave: bytes of an answer after which it goes (0: once all is sent), by `how`: 'fin', 'rst' or 'half' (shut for sending, and
    reads on). reads: False, or at most so many bytes whenever it is asked to. patience: seconds after which it goes anyway."""

    def __init__(self, data, leave=None, how='fin', receive_buffer=None, reads=1 << 16):
        self.data, self.leave, self.how, self.receive_buffer, self.reads = data, leave, how, receive_buffer, reads
        self.reply, self.reset, self.left = bytearray(), False, False
        self.started = self.first = self.ended = 0.0
        self.socket, self.sent = None, 0
        self.arrivals = []  # of the parts of its answer

    def open(self, port):
        self.socket = socket.socket()
        if self.receive_buffer:
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, self.receive_buffer)
        self.socket.setblocking(False)
        self.socket.connect_ex(('127.0.0.1', port))
        self.started = time.monotonic()

    def send(self):
        """True: all is sent."""
        if self.sent < len(self.data):
            self.sent += self.socket.send(self.data[self.sent:self.sent + (1 << 18)])
        return self.sent == len(self.data)

    def receive(self):
        """False: nothing more comes."""
        part = self.socket.recv(self.reads)
        now = time.monotonic()
        self.first = self.first or now
        self.reply += part
        self.arrivals.append((now, len(part)))
        return bool(part)

    def wants_to_leave(self):
        return self.leave is not None and not self.left and self.sent == len(self.data) and len(self.reply) >= self.leave

    def go(self):
        """True: it is gone."""
        self.left = True
        if self.how == 'half':
            self.socket.shutdown(socket.SHUT_WR)
            return False
        if self.how == 'rst':
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack('ii', 1, 0))
        return True


class Swarm:
    def __init__(self, port, at_once=64, seconds=300):
        self.port, self.at_once, self.seconds = port, at_once, seconds
        self.selector = selectors.EpollSelector()

    def run(self, clients):
        waiting, open_ones = list(reversed(clients)), 0
        end = time.monotonic() + self.seconds
        while waiting or open_ones:
            if time.monotonic() > end:
                raise AssertionError(f'{open_ones} clients have no answer after {self.seconds} s')
            while waiting and open_ones < self.at_once:
                client = waiting.pop()
                client.open(self.port)
                self.selector.register(client.socket, selectors.EVENT_WRITE, client)
                open_ones += 1
            for key, events in self.selector.select(1):
                open_ones -= self.serve(key.data, events)
        self.selector.close()

    def serve(self, client, events):
        """True: it has ended."""
        try:
            alive = True
            if events & selectors.EVENT_WRITE and client.send():
                self.selector.modify(client.socket, selectors.EVENT_READ, client)
            if events & selectors.EVENT_READ:
                alive = client.receive()
            if alive and client.wants_to_leave():
                alive = not client.go()
        except BlockingIOError:
            return False
        except OSError:
            client.reset, alive = True, False
        if alive:
            return False
        client.ended = time.monotonic()
        self.selector.unregister(client.socket)
        client.socket.close()
        return True


def parse(reply):
    """Status, headers and body of one whole answer; everything about its form is checked."""
    head, separator, body = bytes(reply).partition(b'\r\n\r\n')
    assert separator, reply[:200]
    lines = head.decode('ascii').split('\r\n')
    assert lines[0].startswith('HTTP/1.1 '), lines[0]
    headers = dict(line.split(': ', 1) for line in lines[1:])
    if headers.get('Transfer-Encoding') == 'chunked':
        parts, rest = [], body
        while True:
            size, _, rest = rest.partition(b'\r\n')
            count = int(size, 16)
            assert rest[count:count + 2] == b'\r\n', 'a chunk that is cut off'
            parts.append(rest[:count])
            rest = rest[count + 2:]
            if count == 0:
                break
        assert rest == b'', rest[:200]
        body = b''.join(parts)
    else:
        assert len(body) == int(headers.get('Content-Length', 0)), (lines[0], len(body), headers)
    return int(lines[0].split()[1]), headers, body


def events_of(body):
    """The events of a stream, and whether an error ended it. One end, nothing behind it; each event is whole UTF-8 and JSON."""
    assert body.endswith(b'data: [DONE]\n\n'), body[-200:]
    events, failed = [], False
    for block in body.split(b'\n\n')[:-2]:
        if block == b': ping':
            continue
        assert block.startswith(b'data: '), block[:200]
        assert not failed, 'an event behind an error'
        event = json.loads(block[6:].decode('utf-8'))
        failed = 'error' in event
        events.append(event)
    return events, failed
