// Speaks to the admin port: the token, a deadline for every call, failures as sentences. Knows nothing of the page.

const READ_DEADLINE_MS = 5000;
const ORDER_DEADLINE_MS = 35000; // the coordinator gives up after 30 s, and says so itself

export class ApiError extends Error {
    // status: of the answer, 0 where there was none.
    constructor(message, status) {
        super(message);
        this.status = status;
    }
}

export class Api {
    #token = "";

    setToken(token) {
        this.#token = token;
    }

    get(path) {
        return this.#call("GET", path, undefined, READ_DEADLINE_MS);
    }

    order(method, path, body) {
        return this.#call(method, path, body, ORDER_DEADLINE_MS);
    }

    async #call(method, path, body, deadlineMs) {
        const response = await this.#send(method, path, body, deadlineMs);
        const answer = await parsed(response);
        if (response.ok && answer !== null) return answer;
        const message = answer?.error?.message;
        throw new ApiError(
            message ?? `The coordinator answers ${response.status}, and not as it should.`,
            response.status,
        );
    }

    async #send(method, path, body, deadlineMs) {
        const headers = { authorization: `Bearer ${this.#token}` };
        if (body !== undefined) headers["content-type"] = "application/json";
        const options = { method, headers, cache: "no-store", credentials: "omit", redirect: "error" };
        const signal = AbortSignal.timeout(deadlineMs);
        try {
            // Relative, so that the page also works behind a proxy that adds a folder.
            return await fetch(path, {
                ...options,
                body: body === undefined ? undefined : JSON.stringify(body),
                signal,
            });
        } catch (error) {
            throw unreachable(error, deadlineMs);
        }
    }
}

async function parsed(response) {
    try {
        return await response.json();
    } catch (error) {
        if (error.name === "TimeoutError" || error.name === "AbortError") throw unreachable(error, READ_DEADLINE_MS);
        return null; // not JSON: whatever answers is no admin port
    }
}

function unreachable(error, deadlineMs) {
    const isLate = error.name === "TimeoutError";
    return new ApiError(isLate ? `No answer within ${deadlineMs / 1000} s.` : "The coordinator cannot be reached.", 0);
}
