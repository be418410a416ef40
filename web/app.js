// The chat page: conversations, the composer, answers as they come, keys. The rest is in the modules beside it.
import {ApiError, LostServer, isThere, models, streamChat} from './chat_api.js';
import {MessageView, button, icon, make} from './message_view.js';
import * as pictures from './pictures.js';
import * as settings from './settings.js';
import * as status from './status.js';
import * as store from './store.js';

const $ = (id) => document.getElementById(id);
const input = $('input');

let conversation = store.newConversation();
let views = [];
let running = null; // of the answer that is being made: {controller, message, view}

// ---- What the page says

function say(text) { // to screen readers
  $('live').textContent = text;
}

function banner(text, kind = 'fault') {
  $('banner').textContent = text;
  $('banner').className = kind;
  $('banner').hidden = !text;
}

let dimmer = 0;
function notice(text) {
  banner(text, 'notice');
  clearTimeout(dimmer);
  dimmer = setTimeout(() => $('banner').className === 'notice' && banner(''), 4000);
}

// ---- The server, which may go away and come back

let away = false;

async function serverIsAway() {
  if (away) return;
  away = true;
  banner('The server does not answer. Trying again…');
  while (!(await isThere())) await new Promise((done) => setTimeout(done, 1500));
  away = false;
  notice('The server is back.');
  loadModels();
}

async function heartbeat() {
  if (!document.hidden && !running && !away && !(await isThere())) await serverIsAway();
  setTimeout(heartbeat, 5000);
}

async function loadModels() {
  try {
    const names = await models(store.apiKey());
    const kept = $('model').value || store.settings().model;
    $('model').replaceChildren(...names.map((name) => new Option(name, name)));
    if (names.includes(kept)) $('model').value = kept;
    $('welcome-note').textContent = names.some((name) => name.startsWith('demo:'))
        ? 'This is a tiny demo model. It knows small sums, short stories and some words.' : '';
    if ($('banner').className === 'fault') banner('');
  } catch (error) {
    if (error instanceof LostServer) return serverIsAway();
    if (error.status !== 401) return banner(error.message);
    banner('This server asks for an API key.');
    $('banner').append(' ', button('Enter it', openKey));
  }
}

function openKey() {
  settings.open();
  $('set-key').focus();
}

// ---- Conversations

function keep() {
  const first = conversation.messages.find((message) => message.role === 'user');
  conversation.title = (first?.content || 'Picture').trim().slice(0, 60);
  conversation.updated = Date.now();
  store.save(conversation);
  showConversations();
}

function showConversations() {
  const items = store.conversations().map((one) => {
    const item = make('li', one.id === conversation.id ? 'current' : '');
    const open = button(one.title || 'Conversation', () => openConversation(store.conversation(one.id) ?? one));
    if (one.id === conversation.id) open.setAttribute('aria-current', 'true');
    const remove = button('', () => removeConversation(one), `Delete ${one.title}`);
    remove.className = 'icon';
    remove.append(icon('trash'));
    item.append(open, remove);
    return item;
  });
  $('conversations').replaceChildren(...items);
}

function openConversation(one) {
  if (one.id !== conversation.id) {
    stop();
    conversation = one;
    showMessages();
    showConversations();
  }
  toggleSidebar(false);
  input.focus();
}

function removeConversation(one) {
  if (!confirm(`Delete "${one.title}"? This cannot be undone.`)) return;
  store.remove(one.id);
  if (one.id === conversation.id) {
    conversation.removed = true; // also for an answer that is being made
    openConversation(store.newConversation());
  }
  showConversations();
}

function otherConversation(step) {
  const all = store.conversations();
  const at = all.findIndex((one) => one.id === conversation.id);
  const next = all[at < 0 ? 0 : at + step];
  if (next) openConversation(next);
}

function toggleSidebar(isOpen) {
  $('app').classList.toggle('with-sidebar', isOpen);
  $('shade').hidden = !isOpen;
  $('menu').setAttribute('aria-expanded', String(isOpen));
}

// ---- Messages

const actions = {
  regenerate: (message) => answerTo(conversation.messages.indexOf(message)),
  edit(message, text) {
    message.content = text;
    answerTo(conversation.messages.indexOf(message) + 1);
  },
  resume: (message) => answer(message, true),
  // texts: what each of the message's calls gave.
  giveResults(message, texts) {
    const at = conversation.messages.indexOf(message) + 1;
    const results = message.toolCalls.map((call, i) => ({role: 'tool', content: texts[i], callId: call.id, name: call.name}));
    conversation.messages.splice(at, Infinity, ...results);
    answerTo(at + results.length);
  },
};

function addView(message) {
  const view = new MessageView(message, actions);
  views.push(view);
  $('list').append(view.element);
  $('welcome').hidden = true;
  return view;
}

function showMessages() {
  views = [];
  $('list').replaceChildren();
  $('welcome').hidden = conversation.messages.length > 0;
  conversation.messages.forEach(addView);
  $('messages').scrollTop = $('messages').scrollHeight;
}

// Drops messages from this one on and has a new answer made there.
function answerTo(index) {
  stop();
  conversation.messages.length = index;
  showMessages();
  const message = {role: 'assistant', content: ''};
  conversation.messages.push(message);
  addView(message);
  answer(message, false);
}

// ---- An answer

function apiMessage(message) {
  if (message.role === 'tool') return {role: 'tool', tool_call_id: message.callId, content: message.content};
  if (message.role === 'user') {
    if (!message.images?.length) return {role: 'user', content: message.content};
    const parts = message.images.map((url) => ({type: 'image_url', image_url: {url}}));
    if (message.content) parts.push({type: 'text', text: message.content});
    return {role: 'user', content: parts};
  }
  const said = {role: 'assistant', content: message.content};
  if (message.reasoning) said.reasoning_content = message.reasoning;
  if (message.toolCalls?.length) {
    said.tool_calls = message.toolCalls.map((call) => ({id: call.id, type: 'function', function: {name: call.name, arguments: call.arguments}}));
  }
  return said;
}

function requestFor(message, continues) {
  const end = conversation.messages.indexOf(message) + (continues ? 1 : 0);
  const said = conversation.messages.slice(0, end).filter((m) => m.role !== 'assistant' || m.content || m.toolCalls?.length);
  const body = {model: $('model').value, messages: said.map(apiMessage), ...settings.requestFields()};
  const system = settings.systemPrompt();
  if (system) body.messages.unshift({role: 'system', content: system});
  if (continues) Object.assign(body, {continue_final_message: true, add_generation_prompt: false});
  return body;
}

function takeChunk(message, chunk, times) {
  if (chunk.usage) times.tokens = chunk.usage.completion_tokens;
  const choice = chunk.choices?.[0];
  if (!choice) return;
  const {content, reasoning_content: reasoning, tool_calls: calls} = choice.delta ?? {};
  if (reasoning || content || calls) times.first ??= performance.now();
  if (reasoning) message.reasoning = (message.reasoning ?? '') + reasoning;
  if ((content || calls) && message.reasoning && message.seconds === undefined) message.seconds = (performance.now() - times.start) / 1000;
  if (content) message.content += content;
  for (const part of calls ?? []) {
    const call = ((message.toolCalls ??= [])[part.index] ??= {id: '', name: '', arguments: ''});
    call.id ||= part.id ?? '';
    call.name += part.function?.name ?? '';
    call.arguments += part.function?.arguments ?? '';
  }
  if (choice.finish_reason) times.reason = choice.finish_reason;
}

function noteOf(times) {
  const parts = [];
  if (times.tokens) {
    parts.push(`${times.tokens} tokens`);
    const seconds = (performance.now() - (times.first ?? times.start)) / 1000;
    // An answer that came in one piece has no rate that can be seen from here.
    if (times.tokens > 1 && seconds > 0.2) parts.push(`${((times.tokens - 1) / seconds).toFixed(1)} per second`);
  }
  if (times.reason === 'length') parts.push('cut at the most tokens');
  if (times.reason === 'stopped') parts.push('stopped');
  return parts.join(' · ');
}

// Who looks at the end goes on doing so.
function refresh(view, isRunning) {
  const list = $('messages');
  const follows = list.scrollHeight - list.scrollTop - list.clientHeight < 80;
  view.update(isRunning);
  if (follows) list.scrollTop = list.scrollHeight;
}

// Shows what has come at most once a frame, and less often when showing takes long.
function painter(view) {
  let asked = false;
  let free = 0;
  return () => {
    if (asked) return;
    asked = true;
    setTimeout(() => requestAnimationFrame(() => {
      asked = false;
      if (running?.view !== view) return;
      const start = performance.now();
      refresh(view, true);
      free = performance.now() + 4 * (performance.now() - start);
    }), Math.max(0, free - performance.now()));
  };
}

function showRunning(isRunning) {
  $('send').hidden = isRunning;
  $('stop').hidden = !isRunning;
}

async function answer(message, continues) {
  stop();
  const mine = conversation;
  const view = views.find((one) => one.message === message);
  const controller = new AbortController();
  const body = requestFor(message, continues);
  for (const name of ['fault', 'broken', 'note']) delete message[name];
  const run = running = {controller, message, view};
  showRunning(true);
  say('The answer begins.');
  const paint = painter(view);
  const times = {start: performance.now()};
  view.update(true);
  $('messages').scrollTop = $('messages').scrollHeight;
  try {
    await streamChat(body, {
      key: store.apiKey(),
      signal: controller.signal,
      onChunk(chunk) {
        takeChunk(message, chunk, times);
        paint();
      },
    });
    say('Answer: ' + (message.content || 'without text'));
  } catch (error) {
    if (error.name === 'AbortError') {
      times.reason = 'stopped';
      message.broken = true;
      say('Stopped.');
    } else {
      message.fault = error.message;
      message.broken = true;
      if (error instanceof LostServer) serverIsAway();
      else if (!(error instanceof ApiError)) message.fault = `This page failed: ${error.message}`;
      if (error.status === 401) openKey();
    }
  }
  const note = noteOf(times);
  if (note) message.note = note;
  if (message.reasoning && message.seconds === undefined) message.seconds = (performance.now() - times.start) / 1000;
  if (running === run) {
    running = null;
    showRunning(false);
  }
  refresh(view, false);
  if (mine === conversation) keep();
  else if (!mine.removed) store.save(mine);
}

function stop() {
  running?.controller.abort();
}

// ---- The composer

function fit() {
  input.style.height = 'auto';
  input.style.height = `${Math.min(input.scrollHeight, window.innerHeight * 0.4)}px`;
}

function send(text) {
  if (running || (!text.trim() && pictures.count() === 0)) return;
  const message = {role: 'user', content: text.trim()};
  if (pictures.count() > 0) message.images = pictures.take();
  input.value = '';
  fit();
  conversation.messages.push(message);
  keep();
  answerTo(conversation.messages.length);
}

// ---- Theme, files, keys

const THEMES = ['automatic', 'light', 'dark'];
function setTheme(theme) {
  if (theme === 'automatic') delete document.documentElement.dataset.theme;
  else document.documentElement.dataset.theme = theme;
  const label = `Theme: ${theme}`;
  $('theme').setAttribute('aria-label', label);
  $('theme').title = label;
}

function nextTheme() {
  const theme = THEMES[(THEMES.indexOf(store.settings().theme ?? 'automatic') + 1) % THEMES.length];
  store.saveSettings({...store.settings(), theme});
  setTheme(theme);
}

function download(text) {
  const link = make('a');
  link.href = URL.createObjectURL(new Blob([text], {type: 'application/json'}));
  link.download = 'calandra-conversations.json';
  link.click();
  URL.revokeObjectURL(link.href);
}

async function importFile(file) {
  try {
    notice(`Imported ${store.imported(await file.text())} conversations.`);
  } catch (error) {
    banner(error.message);
  }
  showConversations();
}

function newChat() {
  openConversation(store.newConversation());
}

const ALT_KEYS = {
  KeyN: newChat,
  KeyR: () => {
    const last = conversation.messages.at(-1);
    if (last?.role === 'assistant') actions.regenerate(last);
  },
  KeyE: () => !running && views.findLast((view) => view.message.role === 'user')?.edit(),
  KeyL: () => toggleStatus(),
  KeyS: settings.open,
  ArrowUp: () => otherConversation(-1),
  ArrowDown: () => otherConversation(1),
};

function onKey(event) {
  if (document.querySelector('dialog[open]')) return; // it has its own keys
  const types = event.target.matches('input, textarea, select');
  if (event.altKey && !event.ctrlKey && !event.metaKey && ALT_KEYS[event.code]) {
    ALT_KEYS[event.code]();
  } else if (event.key === 'Escape') {
    if (running) stop();
    else if ($('app').classList.contains('with-sidebar')) toggleSidebar(false);
    else toggleStatus(false);
    input.focus();
  } else if (event.key === '/' && !types) {
    input.focus();
  } else if (event.key === '?' && !types) {
    $('keys').showModal();
  } else {
    return;
  }
  event.preventDefault();
}

function toggleStatus(isOpen = $('status').hidden) {
  history.replaceState(null, '', isOpen ? '#status' : location.pathname);
  status.toggle(isOpen);
}

function listen() {
  document.addEventListener('keydown', onKey);
  $('composer').addEventListener('submit', (event) => {
    event.preventDefault();
    send(input.value);
  });
  input.addEventListener('input', fit);
  input.addEventListener('keydown', (event) => {
    if (event.key !== 'Enter' || event.shiftKey || event.isComposing) return;
    event.preventDefault();
    send(input.value);
  });
  const clicks = {
    'stop': stop, 'new-chat': newChat, 'theme': nextTheme,
    'menu': () => toggleSidebar(!$('app').classList.contains('with-sidebar')), 'shade': () => toggleSidebar(false),
    'open-status': () => toggleStatus(), 'close-status': () => toggleStatus(false),
    'open-settings': settings.open, 'open-keys': () => $('keys').showModal(),
    'export': () => download(store.exported()), 'import': () => $('import-file').click(),
  };
  for (const [id, action] of Object.entries(clicks)) $(id).addEventListener('click', action);
  $('import-file').addEventListener('change', (event) => importFile(event.target.files[0]).then(() => (event.target.value = '')));
  $('model').addEventListener('change', () => store.saveSettings({...store.settings(), model: $('model').value}));
  for (const one of $('suggestions').children) one.addEventListener('click', () => send(one.textContent));
}

store.onStoreFault(banner);
setTheme(store.settings().theme ?? 'automatic');
pictures.start(notice);
settings.start((name) => name === 'key' && loadModels());
listen();
showConversations();
loadModels();
status.toggle(location.hash === '#status');
input.focus();
setTimeout(heartbeat, 5000);
