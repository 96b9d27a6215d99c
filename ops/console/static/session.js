// The operator's token: asked for in a dialog, kept for this tab alone, forgotten when the coordinator refuses it.

import { byId, setText } from "./dom.js";

const KEY = "step35.token";
const LEGAL = /^[\x21-\x7e]+$/; // what a header can carry

export class Session {
    #onToken;

    // onToken(token): called for each token that might be right.
    constructor(onToken) {
        this.#onToken = onToken;
        byId("token-form").addEventListener("submit", (event) => this.#take(event));
        byId("token-button").addEventListener("click", () => this.ask("Another token replaces the one in use."));
        // Without a token there is nothing behind the dialog to go back to.
        byId("token").addEventListener(
            "cancel",
            (event) => sessionStorage.getItem(KEY) === null && event.preventDefault(),
        );
    }

    start() {
        const token = sessionStorage.getItem(KEY);
        if (token === null) this.ask("");
        else this.#onToken(token);
    }

    refused() {
        sessionStorage.removeItem(KEY);
        this.ask("The coordinator does not know this token. Is it of another cluster, or was it renewed?");
    }

    ask(message) {
        setText(byId("token-message"), message);
        byId("token-input").value = "";
        if (!byId("token").open) byId("token").showModal();
        byId("token-input").focus();
    }

    #take(event) {
        event.preventDefault();
        const token = byId("token-input").value.trim();
        if (!LEGAL.test(token)) {
            setText(byId("token-message"), "This cannot be a token: it has to be one word of plain characters.");
            return;
        }
        sessionStorage.setItem(KEY, token);
        byId("token-input").value = "";
        byId("token").close();
        this.#onToken(token);
    }
}
