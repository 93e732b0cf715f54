// token_padding MODEL: the spare tokens that an image encoder gets, and by how much that changes its output,
// for batches of 1, 2 and 1 in float32. tests/test_token_padding.py drives it.
#include "../sdk/token_padding.hpp"

#include <algorithm>
#include <cmath>
#include <iostream>
#include <random>

int main(int argc, char** argv) {
    if (argc != 2) {
        std::cerr << "usage: token_padding MODEL\n";
        return 2;
    }
    ov::Core core;
    const auto plain = core.read_model(argv[1]), padded = plain->clone();
    std::cout << uniecs::pad_tokens(padded);
    const ov::AnyMap config{{"INFERENCE_PRECISION_HINT", "f32"}};
    ov::InferRequest requests[] = {core.compile_model(plain, "CPU", config).create_infer_request(),
                                   core.compile_model(padded, "CPU", config).create_infer_request()};
    std::mt19937 random(7);
    for (std::size_t batch : {1, 2, 1}) {
        ov::PartialShape shape = plain->input().get_partial_shape();
        shape[0] = batch;
        ov::Tensor given(ov::element::f32, shape.to_shape());
        std::generate_n(given.data<float>(), given.get_size(),
                        [&] { return std::normal_distribution<float>()(random); });
        for (ov::InferRequest& each : requests) {
            each.set_input_tensor(given);
            each.infer();
        }
        const ov::Tensor expected = requests[0].get_output_tensor(), found = requests[1].get_output_tensor();
        float most = expected.get_shape() == found.get_shape() ? 0 : HUGE_VALF;
        for (std::size_t i = 0; i < expected.get_size() && most != HUGE_VALF; ++i)
            most = std::max(most, std::fabs(expected.data<float>()[i] - found.data<float>()[i]));
        std::cout << ' ' << most;
    }
    std::cout << '\n';
}
