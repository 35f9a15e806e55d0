// Copyright (c) the ausm_d2 authors. SPDX-License-Identifier: Apache-2.0
// Requests to the server. The token of the session lives as long as the tab.

const KEY = "ausm session";
let token = sessionStorage.getItem(KEY);

export const address = (path) => `s/${token}/${path}`;

async function answer(response) {
  if (response.ok) return response;
  const body = await response.json().catch(() => ({}));
  const error = new Error(body.error || `the server answered ${response.status}`);
  error.status = response.status;
  throw error;
}

export async function get(path) {
  return answer(await fetch(address(path)));
}

export async function post(path, body = {}) {
  const request = { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(body) };
  return (await answer(await fetch(address(path), request))).json();
}

// The session of this tab, or a new one. Returns its state.
export async function begin() {
  if (token) {
    try {
      return await (await get("state")).json();
    } catch (error) {
      if (error.status !== 404) throw error;
    }
  }
  const key = new URLSearchParams(location.search).get("key"); // where the server asks for one
  const request = { method: "POST", body: JSON.stringify({ key }) };
  token = (await (await answer(await fetch("sessions", request))).json()).token;
  sessionStorage.setItem(KEY, token);
  return { video: null };
}

export function forget() {
  sessionStorage.removeItem(KEY);
}

// Events of the session. `lost` is called with true when the server does not answer, with false when it answers again.
// A restarted server does not know the session, so it has ended.
export function listen(heard, lost) {
  const source = new EventSource(address("events"));
  source.onmessage = (message) => {
    const event = JSON.parse(message.data);
    if (event.type === "end") source.close();
    heard(event);
  };
  source.onopen = () => lost(false);
  source.onerror = async () => {
    if (source.readyState !== EventSource.CLOSED) {
      lost(true);
      return;
    }
    try { // also when the page is left
      await get("state");
    } catch (error) {
      if (error.status === 404) heard({ type: "end" });
      else lost(true);
    }
  };
}

export function upload(file, progress) {
  return new Promise((resolve, reject) => {
    const request = new XMLHttpRequest();
    request.open("POST", address(`upload?name=${encodeURIComponent(file.name)}`));
    request.upload.onprogress = (event) => progress(event.loaded / Math.max(1, event.total));
    request.onerror = () => reject(new Error("the upload was refused or broke off"));
    request.onload = () => {
      let body = {};
      try { body = JSON.parse(request.responseText); } catch { /* said below */ }
      if (request.status === 200) resolve(body);
      else reject(new Error(body.error || `the server answered ${request.status}`));
    };
    request.send(file);
  });
}
