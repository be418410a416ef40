// Conversations and settings, in this browser only. Each conversation has a key of its own, so that two tabs do not
// write over each other's.
//   conversation: {id, title, updated, messages}
//   message: {role, content, images?, reasoning?, seconds?, toolCalls?, fault?, broken?, note?}, or the result of a call:
//            {role: 'tool', content, callId, name}

const PREFIX = 'calandra.conversation.';
const FORMAT = 'calandra-conversations-1';

// Storage may be full or forbidden; what does not fit is still shown.
let complain = () => {};
export function onStoreFault(handler) {
  complain = handler;
}

function write(storage, key, text) {
  try {
    storage().setItem(key, text);
  } catch (error) {
    complain(error.name === 'QuotaExceededError' ? 'The browser\'s storage is full: this is not kept. Export or delete conversations.'
                                                 : 'The browser keeps nothing: ' + error.message);
  }
}

function read(storage, key) {
  try {
    return storage().getItem(key);
  } catch {
    return null;
  }
}

const local = () => window.localStorage;
const session = () => window.sessionStorage;

export function newConversation() {
  return {id: Date.now().toString(36) + Math.random().toString(36).slice(2, 8), title: '', updated: Date.now(), messages: []};
}

// The newest first.
export function conversations() {
  const found = [];
  let count = 0;
  try {
    count = local().length;
  } catch {
    return found;
  }
  for (let i = 0; i < count; i++) {
    const key = local().key(i);
    if (!key.startsWith(PREFIX)) continue;
    const one = checked(parsed(read(local, key)));
    if (one) found.push(one);
  }
  return found.sort((a, b) => b.updated - a.updated);
}

export const conversation = (id) => checked(parsed(read(local, PREFIX + id)));

export function save(conversation) {
  write(local, PREFIX + conversation.id, JSON.stringify(conversation));
}

export function remove(id) {
  try {
    local().removeItem(PREFIX + id);
  } catch (error) {
    complain('The browser keeps nothing: ' + error.message);
  }
}

function parsed(text) {
  try {
    return JSON.parse(text);
  } catch {
    return null;
  }
}

const isText = (value) => typeof value === 'string';
const isPicture = (value) => isText(value) && value.startsWith('data:image/');

// What comes from a file may be anything: only what the page makes itself is taken.
function checked(one) {
  if (!one || !isText(one.id) || !Array.isArray(one.messages)) return null;
  const messages = [];
  for (const m of one.messages) {
    if (!m || !['user', 'assistant', 'tool'].includes(m.role) || !isText(m.content)) return null;
    const message = {role: m.role, content: m.content};
    if (m.role === 'tool') Object.assign(message, {callId: isText(m.callId) ? m.callId : '', name: isText(m.name) ? m.name : ''});
    if (Array.isArray(m.images)) message.images = m.images.filter(isPicture);
    if (isText(m.reasoning)) message.reasoning = m.reasoning;
    if (isText(m.fault)) message.fault = m.fault;
    if (Number.isFinite(m.seconds)) message.seconds = m.seconds;
    if (m.broken === true) message.broken = true;
    if (isText(m.note)) message.note = m.note;
    if (Array.isArray(m.toolCalls)) {
      message.toolCalls = m.toolCalls.filter((call) => call && isText(call.name) && isText(call.arguments))
                              .map((call) => ({id: isText(call.id) ? call.id : '', name: call.name, arguments: call.arguments}));
    }
    messages.push(message);
  }
  return {id: one.id, title: isText(one.title) ? one.title : '', updated: Number.isFinite(one.updated) ? one.updated : 0, messages};
}

export function exported() {
  return JSON.stringify({format: FORMAT, conversations: conversations()}, null, 1);
}

// How many conversations came; throws an Error whose message can be shown. They get new ids: none is written over.
export function imported(text) {
  const file = parsed(text);
  if (!file || file.format !== FORMAT || !Array.isArray(file.conversations)) throw new Error('This is no file of exported conversations.');
  const all = file.conversations.map(checked);
  if (all.includes(null)) throw new Error('The file has a conversation that cannot be read; nothing was imported.');
  for (const one of all) save({...one, id: newConversation().id});
  return all.length;
}

export function settings() {
  return {...parsed(read(local, 'calandra.settings'))};
}

export function saveSettings(values) {
  write(local, 'calandra.settings', JSON.stringify(values));
}

export const apiKey = () => read(session, 'calandra.key') ?? '';
export const saveApiKey = (key) => write(session, 'calandra.key', key);
