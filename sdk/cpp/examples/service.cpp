// Search over HTTP: service INDEX BUNDLE [PORT [HOST [WORKERS]]]; port 0 takes a free one.
//
//   curl 'localhost:8080/search?text=red+kurta&k=5'
//   curl --data-urlencode 'where={"gender": "Women"}' -G 'localhost:8080/search?text=kurta'
//   curl --data-binary @photo.jpg -H 'Content-Type: image/jpeg' 'localhost:8080/search?text=in+blue'
//   curl localhost:8080/health        # 200 after a search that embedded a text
//
// SIGTERM or SIGINT stops it: no new connection is accepted, requests under way are answered. It knows no
// users: put it behind something that does before it listens on anything but the loopback interface.
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

std::string found(const uniecs::SearchEngine& engine, const httplib::Request& request) {
    uniecs::QueryOptions options;
    options.view = request.get_param_value("view");
    options.where = request.get_param_value("where");
    if (request.has_param("k")) {
        const std::string k = request.get_param_value("k");
        const auto [end, error] = std::from_chars(k.data(), k.data() + k.size(), options.k);
        if (error != std::errc() || end != k.data() + k.size() || options.k > MOST_HITS)
            throw uniecs::InputError("k is '" + k + "'; expected 1 to " + std::to_string(MOST_HITS));
    }
    uniecs::Item query;
    if (request.has_param("text")) query.text = request.get_param_value("text");
    if (!request.body.empty()) query.image = uniecs::Image::bytes(request.body);
    return "{\"hits\":" + uniecs::to_json(engine.search(query, options)) + "}";
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
    const auto search = [&](const httplib::Request& request, httplib::Response& response) {
        guarded(response, [&] { return found(engine, request); });
    };
    server.Get("/search", search);
    server.Post("/search", search);
    const int bound = port ? (server.bind_to_port(host, port) ? port : -1) : server.bind_to_any_port(host);
    if (bound < 0) throw uniecs::Error(std::string("cannot listen on ") + host + ":" + std::to_string(port));
    std::thread listening([&] { server.listen_after_bind(); });
    std::printf("listening on %s:%d with %zu workers\n", host, bound, workers);
    std::fflush(stdout);
    int signal = 0;
    sigwait(&signals, &signal);
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
        const auto encoder = uniecs::Encoder::load(argv[2]);
        const auto engine = uniecs::SearchEngine::open(argv[1], encoder);
        const int port = argc > 3 ? std::atoi(argv[3]) : 8080;
        const unsigned cores = std::max(1u, std::thread::hardware_concurrency());
        const std::size_t workers = argc > 5 ? std::strtoul(argv[5], nullptr, 10) : cores;
        return serve(engine, argc > 4 ? argv[4] : "127.0.0.1", port, std::max<std::size_t>(1, workers),
                     signals);
    } catch (const std::exception& error) {
        std::fprintf(stderr, "service: %s\n", error.what());
        return 1;
    }
}
