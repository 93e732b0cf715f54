// Search over HTTP: service INDEX BUNDLE [PORT [HOST [WORKERS]]]; port 0 takes a free one.
//
//   curl 'localhost:8080/search?text=red+kurta&k=5'
//   curl --data-urlencode 'where={"gender": "Women"}' -G 'localhost:8080/search?text=kurta'
//   curl --data-binary @photo.jpg 'localhost:8080/search?text=in+blue'
//   curl localhost:8080/health        # 200 after a search that embedded a text
//
// SIGTERM or SIGINT stops it: no new connection is accepted, requests under way are answered; a second one
// does not wait for them. It knows no users, and a request that trickles in holds a worker until it is whole:
// put it behind something that knows and waits before it listens on anything but the loopback interface.
#include <httplib.h>
#include <pthread.h>

#include <algorithm>
#include <charconv>
#include <csignal>
#include <cstdio>
#include <thread>

#include "uniecs/uniecs.hpp"

namespace {

constexpr std::size_t MOST_BYTES = 20'000'000, MOST_HITS = 1000;

// A message as a JSON string, what is not ASCII as question marks.
std::string quoted(const std::string& text) {
    std::string made = "\"";
    for (const char c : text) {
        if (c == '"' || c == '\\') made += '\\';
        made += c >= 0x20 && c < 0x7f ? c : '?';
    }
    return made + "\"";
}

void answer(httplib::Response& response, int status, const std::string& json) {
    response.status = status;
    response.set_content(json + "\n", "application/json");
}

// What `work` returns as JSON; an error of the request is 400, any other 503.
template <typename Work>
void guarded(httplib::Response& response, Work work) {
    try {
        answer(response, 200, work());
    } catch (const uniecs::InputError& error) {
        answer(response, 400, "{\"error\":" + quoted(error.what()) + "}");
    } catch (const std::exception& error) {
        std::fprintf(stderr, "service: %s\n", error.what());
        answer(response, 503, "{\"error\":" + quoted(error.what()) + "}");
    }
}

std::size_t number(const char* name, const std::string& text, std::size_t least, std::size_t most) {
    std::size_t found = 0;
    const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), found);
    if (error != std::errc() || end != text.data() + text.size() || found < least || found > most)
        throw uniecs::InputError(std::string(name) + " is '" + text + "'; expected " + std::to_string(least) +
                                 " to " + std::to_string(most));
    return found;
}

std::string found(const uniecs::SearchEngine& engine, const httplib::Request& request,
                  const std::string& photo) {
    uniecs::QueryOptions options;
    options.view = request.get_param_value("view");
    options.where = request.get_param_value("where");
    if (request.has_param("k")) options.k = number("k", request.get_param_value("k"), 1, MOST_HITS);
    uniecs::Item query;
    if (request.has_param("text")) query.text = request.get_param_value("text");
    if (!photo.empty()) query.image = uniecs::Image::bytes(photo);
    return "{\"hits\":" + uniecs::to_json(engine.search(query, options)) + "}";
}

// A search with the body as its photo. Of a body that is too large the rest is read but not kept: httplib
// looks at the length where it is told, and not at one that comes in chunks.
void search_by_photo(const uniecs::SearchEngine& engine, const httplib::Request& request,
                     httplib::Response& response, const httplib::ContentReader& read) {
    std::string photo;
    const auto keep = [&](const char* data, std::size_t bytes) {
        if (photo.size() <= MOST_BYTES) photo.append(data, bytes);
        return true;
    };
    const bool is_form = request.is_multipart_form_data();
    const bool whole = is_form ? read([](const auto&) { return true; }, keep) : read(keep);
    if (!whole) return;  // httplib has set the status
    if (photo.size() > MOST_BYTES) return answer(response, 413, "{\"error\":\"the photo is too large\"}");
    guarded(response, [&] {
        if (is_form) throw uniecs::InputError("the body is a form; expected the bytes of a photo alone");
        return found(engine, request, photo);
    });
}

int serve(const uniecs::SearchEngine& engine, const char* host, int port, std::size_t workers,
          const sigset_t& signals) {
    httplib::Server server;
    server.new_task_queue = [workers] { return new httplib::ThreadPool(workers); };
    server.set_payload_max_length(MOST_BYTES);
    server.set_socket_options([](socket_t made) {  // httplib's own let two services share a port
        const int yes = 1;
        setsockopt(made, SOL_SOCKET, SO_REUSEADDR, &yes, sizeof yes);
    });
    server.set_keep_alive_timeout(1);  // an idle connection holds a worker so long
    server.Get("/health", [&](const httplib::Request&, httplib::Response& response) {
        guarded(response, [&] {
            engine.search({"is it well", {}}, {1, {}, {}});
            return "{\"status\":\"ok\",\"products\":" + std::to_string(engine.size()) + "}";
        });
    });
    server.Get("/search", [&](const httplib::Request& request, httplib::Response& response) {
        guarded(response, [&] { return found(engine, request, {}); });
    });
    server.Post("/search", [&](const auto& request, auto& response, const httplib::ContentReader& read) {
        search_by_photo(engine, request, response, read);
    });
    const int bound = port ? (server.bind_to_port(host, port) ? port : -1) : server.bind_to_any_port(host);
    if (bound < 0) throw uniecs::Error(std::string("cannot listen on ") + host + ":" + std::to_string(port));
    std::thread listening([&] { server.listen_after_bind(); });
    std::printf("listening on %s:%d with %zu workers\n", host, bound, workers);
    std::fflush(stdout);
    int signal = 0;
    sigwait(&signals, &signal);
    pthread_sigmask(SIG_UNBLOCK, &signals, nullptr);  // a second one ends the process
    while (!server.is_running()) std::this_thread::sleep_for(std::chrono::milliseconds(1));
    server.stop();
    listening.join();  // after the requests under way
    std::puts("stopped");
    return 0;
}

}  // namespace

int main(int argc, char** argv) {
    if (argc < 3) {
        std::fprintf(stderr, "usage: service INDEX BUNDLE [PORT [HOST [WORKERS]]]\n");
        return 2;
    }
    sigset_t signals;  // blocked before there are threads: only sigwait takes them
    sigemptyset(&signals);
    sigaddset(&signals, SIGTERM);
    sigaddset(&signals, SIGINT);
    pthread_sigmask(SIG_BLOCK, &signals, nullptr);
    try {
        const auto port = static_cast<int>(argc > 3 ? number("PORT", argv[3], 0, 65535) : 8080);
        const std::size_t cores = std::max(1u, std::thread::hardware_concurrency());
        const std::size_t workers = argc > 5 ? number("WORKERS", argv[5], 1, 1024) : cores;
        const auto encoder = uniecs::Encoder::load(argv[2]);
        const auto engine = uniecs::SearchEngine::open(argv[1], encoder);
        return serve(engine, argc > 4 ? argv[4] : "127.0.0.1", port, workers, signals);
    } catch (const std::exception& error) {
        std::fprintf(stderr, "service: %s\n", error.what());
        return 1;
    }
}
